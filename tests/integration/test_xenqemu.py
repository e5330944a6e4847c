"""What is asked of an HVM domain's QEMU: the same of the fake and of a real one, without Xen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapvm.hypervisor import xenqemu, xenqmp
from snapvm.hypervisor.xenqemu import DeviceModel
from tests.fakes.xenqemu import XenQemu
from tests.integration import qemu

DOMID = 7


@pytest.fixture(params=["fake", "real"], autouse=True)
def _there(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A QEMU with a socket as libxl makes one (libxl_dm.c)."""
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    path = xenqmp.socket_of(DOMID)
    if request.param == "fake":
        with XenQemu().listening(path):
            yield
        return
    chardev = f"socket,id=libxl-cmd,path={path},server=on,wait=off"
    with qemu.running(tmp_path, "-chardev", chardev, "-mon", "chardev=libxl-cmd,mode=control"):
        yield


def runs() -> bool:
    with xenqmp.talking(DOMID) as talk:
        return bool(talk.execute("query-status")["running"])


def test_it_stops_and_goes_on() -> None:
    model = DeviceModel(DOMID)
    model.require_able()
    assert runs()
    model.stop()
    assert not runs()
    for _ in range(2):
        xenqemu.go_on(DOMID)
        assert runs()


def test_its_state_can_be_saved_again_and_again() -> None:
    model = DeviceModel(DOMID)
    for _ in range(2):
        model.stop()
        assert len(model.state()) > 1000
        with xenqmp.talking(DOMID) as talk:
            assert talk.execute("query-fdsets") == []
        assert not runs()
        xenqemu.go_on(DOMID)
    assert runs()


def test_it_tells_what_it_writes_to_and_forgets_that() -> None:
    model = DeviceModel(DOMID)
    for _ in range(2):
        model.tell_writes(tells=True)
        model.stop()
        model.tell_writes(tells=False)
        xenqemu.go_on(DOMID)
        xenqemu.forget_writes(DOMID)
    assert runs()
