"""A disk that another domain writes to, too, is not captured as if it were this one's alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm.hypervisor import answers, xendisks
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.refusals import DiskRefused
from snapvm.settings import Settings
from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor.fakedrives import DISK
from tests.unit.hypervisor.fakexen import DYING, RUNNING, FakeXen, Scene

OTHER = 6
NUMBERS = {"/dev/vg0/demo-d0": "fd:5", "/dev/mapper/vg0-demo--d0": "fd:5", "/dev/vg0/b": "fd:6"}
NUMBERS["/srv/link-to-d0"] = "fd:5"


def attach(server: FakeXenstored, domid: int, kind: str = "vbd", **changes: str) -> None:
    """Have libxl attach a drive to a domain."""
    back = f"/local/domain/0/backend/{kind}/{domid}/51712"
    server.set(f"/libxl/{domid}/device/vbd/51712/backend", back)
    for name, value in {**DISK, **changes}.items():
        server.set(f"{back}/{name.replace('_', '-')}", value)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    def number_of(device: Path) -> str:
        return NUMBERS.get(str(device), "")

    monkeypatch.setattr(xendisks, "number_of", number_of)
    server = FakeXenstored()
    xen: Any = FakeXen(server)
    xen.come()
    xen.info_of[0] = replace(RUNNING, domid=0, uuid="0")
    xen.info_of[OTHER] = replace(RUNNING, domid=OTHER, uuid="6")
    server.set(f"/local/domain/{OTHER}/name", "db")
    attach(server, 5, physical_device="fd:5")
    with server.connected() as store:
        yield xen, XenHypervisor(xen, store, xen, Settings())


ANY_NAME = {"params": "aio:/dev/mapper/vg0-demo--d0", "type": "qdisk"}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("vbd", {"physical_device": "fd:5"}),
        ("vbd", {"physical_device": "FD:5", "params": "/dev/vg0/what-it-was-called"}),
        ("vbd", {"type": "file", "physical_device": "7:0"}),
        ("qdisk", ANY_NAME),
        ("qdisk", {"params": "aio:/srv/link-to-d0", "type": "qdisk"}),
        ("vbd3", {**ANY_NAME, "type": "tap"}),
    ],
)
def test_a_disk_that_another_writes_is_refused(
    scene: Scene, kind: str, changes: dict[str, str]
) -> None:
    """A snapshot was recorded of what the other was just writing, and a rollback wrote below it."""
    xen, driver = scene
    attach(xen.store, OTHER, kind, mode="w", dev="xvdb", **changes)
    with pytest.raises(DiskRefused, match="disk xvdb of db, which runs") as refused:
        driver.drives(driver.find("web"))
    assert refused.value.hint() == "detach it there: xl block-detach db xvdb"
    xen.info_of[OTHER] = replace(xen.info_of[OTHER], flags=DYING)
    assert driver.drives(driver.find("web")).disks


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("vbd", {"physical_device": "fd:6", "params": "/dev/vg0/b"}),
        ("vbd", {"physical_device": "fd:6"}),
        ("vbd", {"physical_device": "fd:5", "mode": "r"}),
        ("qdisk", {**ANY_NAME, "device-type": "cdrom"}),
        ("qdisk", {"params": "qcow2:/srv/db.qcow2", "type": "qdisk"}),
        ("9pfs", {"params": "", "type": ""}),
    ],
)
def test_a_disk_that_is_another_or_only_read_is_not_refused(
    scene: Scene, kind: str, changes: dict[str, str]
) -> None:
    xen, driver = scene
    attach(xen.store, OTHER, kind, **changes)
    assert driver.drives(driver.find("web")).disks


def test_an_image_of_another_on_a_server_that_is_gone_is_not_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel never answered, and every command hung, though its own domain was on volumes."""
    xen, driver = scene
    is_back = threading.Event()

    def number_of(device: Path) -> str:
        if device == Path("/srv/db.img"):
            is_back.wait(20)
        return NUMBERS.get(str(device), "")

    monkeypatch.setattr(xendisks, "number_of", number_of)
    monkeypatch.setattr(answers, "LIMIT_SECONDS", 0.05)
    attach(xen.store, OTHER, type="file", params="/srv/db.img", physical_device="7:0")
    begun = time.monotonic()
    assert driver.drives(driver.find("web")).disks
    assert time.monotonic() - begun < 10
    is_back.set()


def test_a_domain_that_has_the_disks_for_this_one_is_no_other(scene: Scene) -> None:
    """QEMU in a domain of its own (device_model_stubdomain_override)."""
    xen, driver = scene
    attach(xen.store, OTHER, physical_device="fd:5")
    xen.store.set("/local/domain/5/image/device-model-domid", str(OTHER))
    assert driver.drives(driver.find("web")).disks
