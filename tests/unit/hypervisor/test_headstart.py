"""QEMU begins ahead of the pause: by how much, and what becomes of it when that was too much."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, PausedMeanwhile
from snapvm.hypervisor import headstart, libvirtbackground, libvirtlink, qmp, userfault
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.headstart import Experience, seconds_ahead
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.pause import WatchedPause
from snapvm.memory import libvirtimage
from snapvm.model import DomainState, Silent
from tests.unit.hypervisor import test_pause, test_qemusettings
from tests.unit.hypervisor.test_witness import DOMAIN, happened

RUN = "process 4711 since 5000"
PAGES = b"pages"


@pytest.mark.parametrize(
    ("taken_seconds", "ahead_seconds"),
    [
        ((), 0.0),
        ((0.4,), 0.0),
        ((0.4, 0.2), 0.1),
        ((0.1, 3.0, 0.2), 0.05),
        ((0.03, 0.03), 0.0),
        ((60.0, 60.0), 5.0),
    ],
)
def test_half_of_the_shortest_time(taken_seconds: tuple[float, ...], ahead_seconds: float) -> None:
    """None before it is known, and none where the disks take longer anyway."""
    assert seconds_ahead(taken_seconds) == ahead_seconds


def test_what_is_known_is_of_one_run(tmp_path: Path) -> None:
    known = Experience(file=tmp_path / "uuid.populate", run=RUN)
    assert known.taken_seconds() == ()
    for number in range(10):
        known.note(number, was_running=False)
    assert known.taken_seconds() == (2, 3, 4, 5, 6, 7, 8, 9)
    other = replace(known, run="process 4711 since 9000")
    assert other.taken_seconds() == ()
    other.note(0.5, was_running=False)
    assert (known.taken_seconds(), other.taken_seconds()) == ((), (0.5,))


def test_what_it_took_beside_a_running_guest_counts_once_it_is_known(tmp_path: Path) -> None:
    known = Experience(file=tmp_path / "uuid.populate", run=RUN)
    for seconds, was_running in ((0.2, False), (0.1, False), (0.4, True)):
        known.note(seconds, was_running=was_running)
    assert seconds_ahead(known.taken_seconds()) == 0.05
    known.note(0.3, was_running=True)
    assert seconds_ahead(known.taken_seconds()) == 0.15


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"run": 3}', f'{{"run": "{RUN}", "taken": [[null, 1]]}}', "\0" * 9000]
)
def test_a_hint_that_cannot_be_read_is_none(tmp_path: Path, said: str) -> None:
    file = tmp_path / "uuid.populate"
    file.write_text(said)
    known = Experience(file=file, run=RUN)
    assert known.taken_seconds() == ()
    known.note(0.5, was_running=True)
    assert known.taken_seconds() == (0.5,)


def test_a_hint_that_cannot_be_kept_is_no_failure(tmp_path: Path) -> None:
    Experience(file=tmp_path / "nowhere" / "uuid.populate", run=RUN).note(0.5, was_running=True)


@dataclass
class FakeQemu(test_pause.FakeDomain):
    """A domain whose QEMU makes background snapshots, once it has read all of the memory."""

    is_quick: bool = False
    """It has done so before anybody else stops the guest, once, and stops it itself."""
    is_told_at_once: bool = True
    untold: list[tuple[str, float]] = field(default_factory=list)
    is_as_quick: bool = False
    """It has done so in the instant in which it is told to stop the guest."""
    is_slow_to_flush: bool = False
    """It has read all of the memory by the time it has stopped the guest as it was told."""
    fails: bool = False
    """A disk of the guest fails as soon as QEMU has begun, and the guest stands still for it."""
    is_paused_by_owner: bool = False
    """As soon as QEMU has begun."""
    run_state: str = "paused"
    """Why it stands still, when it does."""
    said: list[str] = field(default_factory=list)
    status: str = "none"
    is_large: bool = False
    """It does not get through all of the memory as long as anybody waits."""
    pipe: int = -1

    def suspend(self) -> None:
        self.said.append("suspend")
        self.tell()
        if self.is_as_quick:
            happened(self.events, "STOP")
            self.protect()
            happened(self.events, "RESUME")
        elif self.state_now == test_pause.RUNNING:
            super().suspend()
        if self.is_slow_to_flush and self.status == "setup":
            self.protect()

    def resume(self) -> None:
        self.said.append("resume")
        super().resume()
        self.run_state = "paused"
        if self.status == "active":
            self.end("completed")

    def qemuMonitorCommandWithFiles(  # noqa: N802 - libvirt's own name
        self, _handle: object, _line: str, descriptors: list[int], _flags: int
    ) -> tuple[str, list[int]]:
        self.pipe = os.dup(descriptors[0])
        return '{"return": {}}', []

    def qemuMonitorCommand(  # noqa: N802 - libvirt's own name
        self, _handle: object, line: str, _flags: int
    ) -> str:
        command = json.loads(line)["execute"]
        if command == "query-migrate":
            answer = self.look()
            is_through = self.status == "setup" and not self.is_large
            if is_through and self.state_now == test_pause.PAUSED:
                self.protect()
            return json.dumps({"return": answer})
        if command == "query-status":
            now = "running" if self.state_now == test_pause.RUNNING else self.run_state
            return json.dumps({"return": {"status": now}})
        self.said.append(command)
        if command == "migrate":
            self.status = "setup"
            if self.fails:
                self.fails = False
                self.run_state, self.state_now = "io-error", test_pause.PAUSED
                happened(self.events, "STOP")
            if self.is_paused_by_owner:
                super().suspend()
            if self.is_quick:
                self.protect()
                self.untold += [(name, time.time()) for name in ("STOP", "RESUME")]
                self.tell(None if self.is_told_at_once else 0)
        if command == "migrate_cancel":
            self.is_quick = False
            self.end("cancelled")
        return '{"return": {}}'

    def tell(self, count: int | None = None) -> None:
        """Let what has happened be heard."""
        for name, at in self.untold[:count]:
            self.events.on_event(None, None, name, int(at), int(at % 1 * 1e6), None, None)
        del self.untold[:count]

    def look(self) -> dict[str, Any]:
        pages = int(self.status == "active")
        return {"status": self.status, "ram": {"normal": pages}, "setup-time": 80}

    def protect(self) -> None:
        assert self.run_state == "paused", "invalid runstate transition"
        self.status = "active"
        os.write(self.pipe, PAGES)

    def end(self, status: str) -> None:
        if status == "cancelled":
            with pytest.raises(BrokenPipeError):
                os.write(self.pipe, PAGES)
        self.status = status
        os.close(self.pipe)


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    fake = FakeQemu()
    monkeypatch.setattr(qmp, "libvirt_qemu", fake)
    monkeypatch.setattr(libvirtlink, "libvirt", SimpleNamespace(libvirtError=OSError))
    monkeypatch.setattr(userfault, "allowed", lambda _folder: nullcontext())
    monkeypatch.setattr(libvirtbackground, "CALM_SECONDS", 0.0)
    return fake


@pytest.fixture
def monitor() -> test_qemusettings.FakeQemu:
    return test_qemusettings.FakeQemu()


@pytest.fixture
def job(qemu: FakeQemu, monitor: test_qemusettings.FakeQemu, tmp_path: Path) -> CaptureJob:
    clock = WindowClock()
    lender = test_qemusettings.lender(monitor, tmp_path, run=RUN)
    return CaptureJob(
        domain=DOMAIN,
        handle=qemu,
        lender=lender,
        pause=WatchedPause(DOMAIN, qemu, qemu.events, clock),
        folder=tmp_path,
        run_dir=tmp_path,
        clock=clock,
        progress=Silent(),
        limit_seconds=30,
        window_limit_seconds=30,
        precopy_limit_seconds=30,
    )


def captured(job: CaptureJob) -> str:
    """Capture and return how."""
    capture = BackgroundCapture(job, "")
    with capture.prepared(libvirtimage.Writer()):
        with capture.window():
            capture.arm()
        capture.drain()
        assert job.image.read_bytes().endswith(PAGES)
        return capture.method


def experience(job: CaptureJob, *taken_seconds: float) -> Experience:
    known = Experience(file=job.run_dir / f"{DOMAIN.uuid}{headstart.FILE_ENDING}", run=RUN)
    for seconds in taken_seconds:
        known.note(seconds, was_running=False)
    return known


def test_it_begins_in_the_pause_before_anything_is_known(qemu: FakeQemu, job: CaptureJob) -> None:
    captured(job)
    assert qemu.said == [
        "suspend",
        "migrate",
        "resume",
    ]
    assert experience(job).taken_seconds() == (0.08,), "as QEMU says"


def test_it_begins_ahead_of_the_pause_once_it_is_known(qemu: FakeQemu, job: CaptureJob) -> None:
    known = experience(job, 0.06, 0.05)
    method = captured(job)
    assert qemu.said == [
        "migrate",
        "suspend",
        "resume",
    ]
    assert method == BackgroundCapture.way
    assert known.taken_seconds() == (0.06, 0.05, 0.08)
    assert "ahead" in [part.name for part in job.clock.timing().parts]


def test_one_that_its_owner_paused_is_not_waited_for(qemu: FakeQemu, job: CaptureJob) -> None:
    experience(job, 0.06, 0.05)
    qemu.state_now = test_pause.PAUSED
    paused = replace(DOMAIN, state=DomainState.PAUSED)
    pause = WatchedPause(paused, qemu, qemu.events, job.clock)
    capture = BackgroundCapture(replace(job, domain=paused, pause=pause), "")
    with capture.prepared(libvirtimage.Writer()):
        with capture.window():
            capture.arm()
        qemu.end("completed")
        capture.drain()
    assert "ahead" not in [part.name for part in job.clock.timing().parts]


@pytest.mark.parametrize(
    ("is_told_at_once", "expected"), [(True, []), (False, ["suspend"])], ids=["heard", "unheard"]
)
def test_a_qemu_that_overtakes_begins_once_more_in_the_pause(
    qemu: FakeQemu, job: CaptureJob, is_told_at_once: bool, expected: list[str]
) -> None:
    """What it caught first is of no instant of the disks: no byte of it is in the image."""
    experience(job, 0.06, 0.05)
    qemu.is_quick, qemu.is_told_at_once = True, is_told_at_once
    method = captured(job)
    assert qemu.said[:-5] == ["migrate", *expected]
    assert qemu.said[-5:] == ["migrate_cancel", "resume", "suspend", "migrate", "resume"]
    assert "stood still twice" in method
    assert job.image.read_bytes().count(PAGES) == 1
    assert (qemu.state_now, qemu.status) == (test_pause.RUNNING, "completed")


def test_a_suspend_that_takes_long_is_no_overtaking(qemu: FakeQemu, job: CaptureJob) -> None:
    """QEMU flushes the disks meanwhile, and has read all of the memory when that is done."""
    experience(job, 0.06, 0.05)
    qemu.is_slow_to_flush = True
    assert captured(job) == BackgroundCapture.way
    assert qemu.said == ["migrate", "suspend", "resume"]


def test_a_guest_that_stops_meanwhile_is_not_met_by_qemu(qemu: FakeQemu, job: CaptureJob) -> None:
    """The pipe is broken first: QEMU would end itself when it came to stop such a guest."""
    experience(job, 0.06, 0.05)
    qemu.fails = True
    assert "stood still twice" in captured(job)
    assert qemu.said == ["migrate", "migrate_cancel", "resume", "suspend", "migrate", "resume"]


def test_one_that_its_owner_pauses_meanwhile_stays_paused(qemu: FakeQemu, job: CaptureJob) -> None:
    """It ran again, was paused a second time, and was left running: QEMU's own stop looks so."""
    experience(job, 0.06, 0.05)
    qemu.is_paused_by_owner = True
    with pytest.raises(PausedMeanwhile):
        captured(job)
    assert (qemu.said, qemu.state_now) == (["migrate", "migrate_cancel"], test_pause.PAUSED)


def test_a_guest_that_stands_still_for_its_own_reason_is_left_alone(
    qemu: FakeQemu, job: CaptureJob
) -> None:
    """It stopped between the plan and the pause; QEMU is told to do nothing with it."""
    qemu.state_now, qemu.run_state = test_pause.PAUSED, "io-error"
    with pytest.raises(PausedMeanwhile):
        captured(job)
    assert (qemu.said, qemu.state_now) == (["closefd"], test_pause.PAUSED)


def test_a_qemu_that_does_not_fail_in_time_does_not_begin_ahead(
    qemu: FakeQemu, monitor: test_qemusettings.FakeQemu, job: CaptureJob
) -> None:
    experience(job, 0.06, 0.05)
    monitor.version = (9, 0)
    captured(job)
    assert qemu.said == ["suspend", "migrate", "resume"]


def test_a_qemu_that_is_as_quick_is_thrown_away(qemu: FakeQemu, job: CaptureJob) -> None:
    """Whose stop it was cannot be told by the clock; that it runs in the window can be seen."""
    experience(job, 0.06, 0.05)
    qemu.is_as_quick = True
    with pytest.raises(CaptureFailed):
        captured(job)
    assert qemu.state_now == test_pause.RUNNING


def test_a_guest_whose_memory_takes_longer_than_the_window_may_runs_on(
    qemu: FakeQemu, job: CaptureJob
) -> None:
    """It stood still for a minute, whatever its owner had set."""
    qemu.is_large = True
    with pytest.raises(CaptureFailed, match=r"longer than 0\.1 s \(window_limit_seconds\)"):
        captured(replace(job, window_limit_seconds=0.1))
    assert (qemu.state_now, qemu.status) == (test_pause.RUNNING, "cancelled")
    assert job.clock.timing().pause_ms < 5000
