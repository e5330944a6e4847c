"""The QEMU of an HVM domain: what it is asked, and what becomes of it."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from snapvm.hypervisor import xenqemu, xenqmp
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenqemu import DeviceModel
from tests.fakes.xenqemu import STATE, XenQemu

DOMID = 7


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[XenQemu]:
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    made = XenQemu()
    with made.listening(xenqmp.socket_of(DOMID)):
        yield made


def test_its_state_is_what_it_writes_when_it_is_stopped(qemu: XenQemu) -> None:
    model = DeviceModel(DOMID)
    model.stop()
    assert model.state() == STATE
    assert not qemu.is_running and not qemu.descriptors


def test_a_state_that_it_does_not_write_leaves_it_no_descriptor(qemu: XenQemu) -> None:
    qemu.refuses = "xen-save-devices-state"
    with pytest.raises(XenFailed, match="refused"):
        DeviceModel(DOMID).state()
    assert not qemu.descriptors


def test_one_that_is_stopped_goes_on(qemu: XenQemu) -> None:
    DeviceModel(DOMID).stop()
    xenqemu.go_on(DOMID)
    assert qemu.is_running


def test_one_that_runs_is_let_alone(qemu: XenQemu) -> None:
    xenqemu.go_on(DOMID)
    assert "cont" not in qemu.asked


@pytest.mark.parametrize("tells", [False, True])
def test_it_no_longer_tells_what_it_writes_to_and_lives(qemu: XenQemu, *, tells: bool) -> None:
    """A killed snapvm may have had it tell that, and one that is told to stop twice ends."""
    qemu.tells_writes = tells
    xenqemu.forget_writes(DOMID)
    assert not qemu.tells_writes and not qemu.has_died


def test_one_that_would_end_by_that_is_not_asked(qemu: XenQemu) -> None:
    qemu.version = (6, 2)
    xenqemu.forget_writes(DOMID)
    assert not qemu.has_died
    with pytest.raises(XenFailed, match=r"version 6\.2, and must be 7\.0"):
        DeviceModel(DOMID).require_able()


@pytest.mark.parametrize("version", [(5, 2), (7, 2), (10, 0)])
def test_others_can_be_captured(qemu: XenQemu, version: tuple[int, int]) -> None:
    qemu.version = version
    DeviceModel(DOMID).require_able()


def test_what_it_refuses_is_said(qemu: XenQemu) -> None:
    qemu.refuses = "stop"
    with pytest.raises(XenFailed, match=r"QEMU of domain 7 .*: stop is refused"):
        DeviceModel(DOMID).stop()


def test_one_that_hangs_is_not_waited_for_without_end(
    qemu: XenQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xenqmp, "ANSWER_SECONDS", 0.2)
    with (
        xenqmp.talking(DOMID),  # it listens to one at a time
        pytest.raises(XenFailed, match="timed out"),
    ):
        DeviceModel(DOMID).stop()


def test_one_that_no_descriptor_is_left_for_is_said(
    qemu: XenQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came out as a bug, from the pause."""

    def none_left(_family: int) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(XenFailed, match="Too many open files"):
        xenqemu.go_on(DOMID)
    assert qemu.is_running


def test_one_that_ends_meanwhile_is_said(qemu: XenQemu) -> None:
    def die(_command: str) -> None:
        qemu.has_died = True

    with xenqmp.talking(DOMID) as talk:
        qemu.on_command = die
        with pytest.raises(XenFailed, match="closed the connection"):
            talk.execute("stop")


def test_why_a_state_is_not_told_in_time_is_said(
    qemu: XenQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said that nothing can be read from an object that timed out."""
    monkeypatch.setattr(xenqmp, "ANSWER_SECONDS", 0.2)

    def be_slow(command: str) -> None:
        if command == "xen-save-devices-state":
            time.sleep(0.5)

    qemu.on_command = be_slow
    with pytest.raises(XenFailed, match=r": timed out$"):
        DeviceModel(DOMID).state()


def test_an_error_that_is_no_qmp_is_said(qemu: XenQemu) -> None:
    qemu.refuses, qemu.error = "stop", "no"
    with pytest.raises(XenFailed, match=r": no$"):
        DeviceModel(DOMID).stop()


def test_a_domain_without_one_needs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    xenqemu.go_on(DOMID)
    xenqemu.forget_writes(DOMID)
    assert not xenqemu.is_there(DOMID)
    with pytest.raises(XenFailed, match="No such file"):
        DeviceModel(DOMID).stop()
