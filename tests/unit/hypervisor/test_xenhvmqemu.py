"""An HVM domain is captured with its QEMU, which stands still with it and runs on before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor import xenqmp
from snapvm.hypervisor.xencapture import XenJob, XenPauseCapture
from snapvm.hypervisor.xenhvm import XenHvmCapture
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstandstill import lift
from snapvm.memory import xenimage
from snapvm.memory.streamframe import StreamFrame
from snapvm.memory.xenimage import EmulatorRecord
from snapvm.model import DomainState
from tests.fakes.xenqemu import STATE, XenQemu
from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor.capturedxen import CDROM_NUMBER, DISK_NUMBER, DOMID, captured
from tests.unit.hypervisor.fakesaver import FakeSaver

HVM = 2
PC, PVH = 0x3FF, 1
"""What Xen emulates for a domain of each kind (XEN_X86_EMU_...)."""


@dataclass
class Scene:
    """An HVM domain that suspends itself when it is asked to."""

    server: FakeXenstored
    job: XenJob
    control: Any
    saver: FakeSaver
    qemu: XenQemu

    def prepared(self) -> AbstractContextManager[XenHvmCapture]:
        images: Any = SimpleNamespace(of_stream=StreamFrame)
        return XenHvmCapture.prepared(self.job, images)

    @property
    def runs(self) -> bool:
        now = self.control.now
        stands = now.is_paused or now.is_suspended
        return self.qemu.is_running and not self.qemu.tells_writes and not stands


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path)
    qemu, saver = XenQemu(), FakeSaver(changes=[0, 2])
    with captured(tmp_path) as (server, job), qemu.listening(xenqmp.socket_of(DOMID)):
        control: Any = job.control
        control.now = replace(control.now, flags=control.now.flags | HVM, emulated=PC)
        control.suspends(server)
        saver.is_suspended = lambda: bool(control.now.is_suspended and control.now.is_paused)
        control.libraries = SimpleNamespace(**{**vars(control.libraries), **vars(saver.libraries)})
        yield Scene(server, replace(job, info=control.now), control, saver, qemu)


def test_the_image_has_what_qemu_was_when_all_stood_still(scene: Scene) -> None:
    with scene.prepared() as capture:
        assert scene.qemu.is_running and scene.qemu.tells_writes
        with capture.window():
            assert not scene.qemu.is_running
            capture.arm()
            assert not scene.qemu.is_running and not scene.qemu.tells_writes
        assert scene.runs
        record = capture.drain()
    path = scene.job.folder / record.file
    with xenimage.open_image(path) as image:
        found = [record for record in image.records() if isinstance(record, EmulatorRecord)]
    assert [(each.emulator_id, each.index) for each in found] == [(2, 0)]
    at = found[0].offset_bytes
    assert path.read_bytes()[at : at + found[0].length_bytes] == STATE


def test_its_disks_are_at_rest_before_they_are_captured(scene: Scene) -> None:
    """QEMU has I/O of its own, which it finishes when it is stopped; the guest is still then."""
    stood_still: list[bool] = []

    def look(command: str) -> None:
        if command == "stop":
            stood_still.append(scene.control.now.is_suspended)

    scene.qemu.on_command = look
    with scene.prepared() as capture, capture.window():
        assert stood_still == [True]
        capture.arm()
    assert scene.runs


def test_qemu_runs_on_before_the_guest_does(scene: Scene) -> None:
    stood_still: list[bool] = []

    def look(command: str) -> None:
        if command == "cont":
            stood_still.append(scene.control.now.is_paused and scene.control.now.is_suspended)

    scene.qemu.on_command = look
    with scene.prepared() as capture, capture.window():
        capture.arm()
    assert stood_still == [True] and scene.runs


@pytest.mark.parametrize("command", ["stop", "add-fd", "xen-save-devices-state"])
def test_all_of_it_runs_on_when_qemu_refuses(scene: Scene, command: str) -> None:
    scene.qemu.refuses = command
    with (
        pytest.raises(CaptureFailed, match=f"{command} is refused"),
        scene.prepared() as capture,
        capture.window(),
    ):
        capture.arm()
    assert scene.runs and scene.saver.is_ended and not scene.qemu.descriptors


def test_writes_that_qemu_would_not_tell_of_are_no_snapshot(scene: Scene) -> None:
    scene.qemu.refuses = "xen-set-global-dirty-log"
    with pytest.raises(CaptureFailed, match="refused"), scene.prepared():
        pytest.fail("it is captured all the same")
    assert scene.runs and scene.saver.is_ended


def test_a_qemu_that_has_gone_since_it_was_looked_at_is_missed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image lacked what QEMU was, and was recorded as good."""
    monkeypatch.setattr(xenqmp, "FOLDER", tmp_path / "gone")
    with pytest.raises(CaptureFailed, match="No such file"), scene.prepared():
        pytest.fail("it is captured all the same")
    assert scene.saver.is_ended and not scene.control.now.is_paused


def test_all_of_it_runs_on_when_the_disks_fail(scene: Scene) -> None:
    with pytest.raises(ZeroDivisionError), scene.prepared() as capture, capture.window():
        raise ZeroDivisionError
    assert scene.runs


def test_one_that_is_given_up_while_it_is_copied_leaves_qemu_as_it_was(scene: Scene) -> None:
    with pytest.raises(ZeroDivisionError), scene.prepared():
        raise ZeroDivisionError
    assert scene.runs and not scene.qemu.has_died


def test_one_without_drivers_for_xen_is_suspended_by_xen(scene: Scene) -> None:
    """It would never answer, and be waited for in vain."""
    scene.server.on_write = lambda *_: None
    scene.control.obeys = False
    for number in (DISK_NUMBER, CDROM_NUMBER):
        scene.server.set(f"/local/domain/{DOMID}/device/vbd/{number}/state", "1")
    with scene.prepared() as capture:
        with capture.window():
            assert scene.control.now.is_suspended
            capture.arm()
        assert scene.runs
    assert not any("suspend" in value for value in scene.server.values.values())


def test_drivers_that_cannot_be_told_of_a_suspend_are_no_snapshot(scene: Scene) -> None:
    """A boot loader's have rings, which nobody connects anew after a rollback."""
    scene.control.obeys = False
    with pytest.raises(CaptureFailed, match="boot loader"), scene.prepared():
        pytest.fail("it is captured all the same")
    assert scene.runs and not scene.control.now.is_suspended


def test_one_that_somebody_resumes_meanwhile_is_no_snapshot(scene: Scene) -> None:
    with pytest.raises(WindowBroken), scene.prepared() as capture, capture.window():
        scene.control.now = replace(scene.control.now, flags=HVM | 8)
    assert scene.runs


def test_a_guest_runs_on_also_when_its_qemu_does_not(scene: Scene) -> None:
    """And it is said: QEMU does the rest of its I/O."""
    scene.qemu.is_running, scene.qemu.refuses = False, "cont"
    scene.control.pause(DOMID)
    with pytest.raises(XenFailed, match="cont is refused"):
        lift(scene.control, DOMID, suspend=True, pause=True)
    assert not scene.control.now.is_paused


def test_one_that_its_owner_has_paused_is_left_so_with_its_qemu(scene: Scene) -> None:
    scene.qemu.is_running = False
    lift(scene.control, DOMID, suspend=False, pause=False)
    assert not scene.qemu.is_running


def test_qemu_stands_still_also_for_the_disks_alone(scene: Scene) -> None:
    capture = XenPauseCapture(scene.job)
    with capture.window():
        assert not scene.qemu.is_running
    assert scene.runs


def test_one_that_its_owner_has_paused_is_not_stopped_for_its_disks(scene: Scene) -> None:
    """It would go on with the domain, which only its owner lets run."""
    scene.control.pause(DOMID)
    domain = replace(scene.job.domain, state=DomainState.PAUSED)
    with XenPauseCapture(replace(scene.job, domain=domain)).window():
        pass
    assert scene.qemu.asked == []


def test_a_qemu_that_somebody_else_has_stopped_to_save_the_guest_is_let_alone(
    scene: Scene,
) -> None:
    """`xl save` suspends a guest without drivers for Xen at once, also one that we have paused.

    A QEMU that goes on changes memory that xl writes, and disks that belong to it.
    """
    capture = XenPauseCapture(scene.job)
    with pytest.raises(ZeroDivisionError), capture.window():
        scene.control.suspend(DOMID)
        raise ZeroDivisionError
    assert not scene.qemu.is_running
    assert scene.control.now.is_suspended and not scene.control.now.is_paused


@pytest.mark.parametrize("suspend", [False, True])
def test_the_qemu_of_a_pvh_guest_is_none_of_ours(scene: Scene, *, suspend: bool) -> None:
    """One may serve its disks; it is never stopped, and need not answer."""
    scene.control.now = replace(scene.control.now, emulated=PVH)
    scene.qemu.refuses = "query-status"
    scene.control.pause(DOMID)
    lift(scene.control, DOMID, suspend=suspend, pause=True)
    assert scene.qemu.asked == [] and not scene.control.now.is_paused
