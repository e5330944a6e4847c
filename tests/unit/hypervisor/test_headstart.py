"""QEMU begins ahead of the pause: by how much, and what becomes of it when that was too much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm.failures import CaptureFailed, PausedMeanwhile, SnapshotFailed
from snapvm.hypervisor import headstart, userfault
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.headstart import Experience, seconds_ahead
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.memory import libvirtimage
from tests.unit.hypervisor import fakemonitor
from tests.unit.hypervisor.eagerqemu import PAGES, RUN, EagerQemu, owners
from tests.unit.hypervisor.fakedomain import DOMAIN, PAUSED, RUNNING, happened


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
def test_the_disks_wait_for_half_of_the_shortest_time(
    taken_seconds: tuple[float, ...], ahead_seconds: float
) -> None:
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


def test_a_libvirtd_that_is_restarted_while_memory_is_written_costs_nothing(
    job: CaptureJob, qemu: EagerQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU wrote on, and the snapshot was thrown away; nor did QEMU get its settings back."""
    look, outages = qemu.look, [1, 2]

    def lost(answer: Callable[[], Any]) -> Callable[[], Any]:
        def ask() -> Any:
            if outages:
                outages.pop()
                raise LibvirtFailed("client socket is closed", 38)
            return answer()

        return ask

    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window():
            capture.arm()
        monkeypatch.setattr(qemu, "look", lost(look))
        monkeypatch.setattr(qemu, "connect", lost(lambda: qemu))
        assert capture.drain().size_bytes
    assert not outages


def captured(job: CaptureJob) -> str:
    """Capture and return how."""
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
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


def test_it_begins_in_the_pause_before_anything_is_known(qemu: EagerQemu, job: CaptureJob) -> None:
    captured(job)
    assert qemu.said == [
        "suspend",
        "migrate",
        "resume",
    ]
    assert experience(job).taken_seconds() == (0.08,), "as QEMU says"


def test_it_begins_ahead_of_the_pause_once_it_is_known(qemu: EagerQemu, job: CaptureJob) -> None:
    known = experience(job, 0.06, 0.05)
    method = captured(job)
    assert qemu.said == [
        "migrate",
        "suspend",
        "resume",
    ]
    assert method == BackgroundCapture.way
    assert known.taken_seconds() == (0.06, 0.05, 0.08)
    beside = [was_running for _, was_running in json.loads(known.file.read_text())["taken"]]
    assert beside == [False, False, True]
    assert "ahead" in [part.name for part in job.clock.timing().parts]


def test_what_the_host_allows_is_taken_back_once_the_guest_runs_again(
    qemu: EagerQemu, job: CaptureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU needs it no more, and may write memory for an hour yet."""
    holders = []

    @contextmanager
    def allowed(folder: Path) -> Iterator[None]:
        holders.append(folder)
        yield
        holders.remove(folder)

    monkeypatch.setattr(userfault, "allowed", allowed)
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window():
            capture.arm()
            assert holders == [job.run_dir]
        assert holders == [] and qemu.state_now == RUNNING
        capture.drain()


@pytest.mark.parametrize("is_known", [False, True])
def test_it_begins_when_file_systems_are_frozen(
    qemu: EagerQemu, job: CaptureJob, is_known: bool
) -> None:
    experience(job, *[0.06, 0.05][: 2 * is_known])
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window(freeze=lambda: qemu.said.append("freeze")):
            capture.arm()
        capture.drain()
    assert qemu.said[0] == "freeze" and qemu.said.count("freeze") == 1


def test_one_that_its_owner_paused_is_not_waited_for(qemu: EagerQemu, job: CaptureJob) -> None:
    experience(job, 0.06, 0.05)
    job = owners(job, qemu)
    with BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        with capture.window():
            capture.arm()
        qemu.end("completed")
        capture.drain()
    assert "ahead" not in [part.name for part in job.clock.timing().parts]


@pytest.mark.parametrize(
    ("is_told_at_once", "expected"), [(True, []), (False, ["suspend"])], ids=["heard", "unheard"]
)
def test_a_qemu_that_overtakes_begins_once_more_in_the_pause(
    qemu: EagerQemu, job: CaptureJob, is_told_at_once: bool, expected: list[str]
) -> None:
    """What it caught first is of no instant of the disks: no byte of it is in the image."""
    experience(job, 0.06, 0.05)
    qemu.is_quick, qemu.is_told_at_once = True, is_told_at_once
    method = captured(job)
    assert qemu.said[:-5] == ["migrate", *expected]
    assert qemu.said[-5:] == ["migrate_cancel", "resume", "suspend", "migrate", "resume"]
    assert "stood still twice" in method
    assert job.image.read_bytes().count(PAGES) == 1
    assert (qemu.state_now, qemu.status) == (RUNNING, "completed")


def test_a_suspend_that_takes_long_is_no_overtaking(qemu: EagerQemu, job: CaptureJob) -> None:
    """QEMU flushes the disks meanwhile, and has read all of the memory when that is done."""
    experience(job, 0.06, 0.05)
    qemu.is_slow_to_flush = True
    assert captured(job) == BackgroundCapture.way
    assert qemu.said == ["migrate", "suspend", "resume"]


def test_a_guest_that_stops_meanwhile_is_not_met_by_qemu(qemu: EagerQemu, job: CaptureJob) -> None:
    """The pipe is broken first: QEMU would end itself when it came to stop such a guest."""
    experience(job, 0.06, 0.05)
    qemu.fails = True
    assert "stood still twice" in captured(job)
    assert qemu.said == ["migrate", "migrate_cancel", "resume", "suspend", "migrate", "resume"]


def test_one_that_its_owner_pauses_meanwhile_stays_paused(qemu: EagerQemu, job: CaptureJob) -> None:
    """It ran again, was paused a second time, and was left running: QEMU's own stop looks so."""
    experience(job, 0.06, 0.05)
    qemu.is_paused_by_owner = True
    with pytest.raises(PausedMeanwhile):
        captured(job)
    assert (qemu.said, qemu.state_now) == (["migrate", "migrate_cancel"], PAUSED)


def test_a_guest_that_stands_still_for_its_own_reason_is_left_alone(
    qemu: EagerQemu, job: CaptureJob
) -> None:
    """It stopped between the plan and the pause; QEMU is told to do nothing with it."""
    qemu.state_now, qemu.run_state = PAUSED, "io-error"
    with pytest.raises(PausedMeanwhile):
        captured(job)
    assert (qemu.said, qemu.state_now) == (["closefd"], PAUSED)


def test_a_guest_whose_disk_fails_as_it_is_suspended_is_not_met_by_qemu(
    qemu: EagerQemu, job: CaptureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still for that, and QEMU would end itself when it came to stop it."""

    def suspend() -> None:
        qemu.state_now, qemu.run_state = PAUSED, "io-error"
        happened(qemu.events, "STOP")

    monkeypatch.setattr(qemu, "suspend", suspend)
    with pytest.raises(CaptureFailed, match="it is io-error and not paused"):
        captured(job)
    assert "migrate" not in qemu.said


def test_a_guest_runs_again_before_a_stream_that_began_ahead_is_ended(
    qemu: EagerQemu, job: CaptureJob
) -> None:
    """Its disks could not be snapshotted; to end the stream takes time, and it need not wait."""
    experience(job, 0.06, 0.05)
    failed = SnapshotFailed(target="vda", volume="vg0/d0", why="a test wants it")
    with (
        pytest.raises(SnapshotFailed),
        BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture,
        capture.window(),
    ):
        raise failed
    assert qemu.said == ["migrate", "suspend", "resume", "migrate_cancel"]
    assert (qemu.state_now, qemu.status) == (RUNNING, "cancelled")


def test_a_qemu_that_does_not_fail_in_time_does_not_begin_ahead(
    qemu: EagerQemu, monitor: fakemonitor.FakeQemu, job: CaptureJob
) -> None:
    experience(job, 0.06, 0.05)
    monitor.version = (9, 0)
    captured(job)
    assert qemu.said == ["suspend", "migrate", "resume"]


def test_a_qemu_that_is_as_quick_is_thrown_away(qemu: EagerQemu, job: CaptureJob) -> None:
    """Whose stop it was cannot be told by the clock; that it runs in the window can be seen."""
    experience(job, 0.06, 0.05)
    qemu.is_as_quick = True
    with pytest.raises(CaptureFailed):
        captured(job)
    assert qemu.state_now == RUNNING


def test_a_qemu_that_lets_the_guest_run_in_the_window_is_thrown_away(
    qemu: EagerQemu, job: CaptureJob
) -> None:
    """Its stop and ours came in one instant, and it has gone on from its own."""
    experience(job, 0.06, 0.05)
    with (
        pytest.raises(CaptureFailed, match="QEMU had stopped it itself"),
        BackgroundCapture.prepared(job, libvirtimage.Writer(), "") as capture,
        capture.window(),
    ):
        qemu.protect()
        qemu.state_now = RUNNING
        happened(qemu.events, "RESUME")
        capture.arm()
    assert (qemu.state_now, qemu.status) == (RUNNING, "cancelled")


def test_a_guest_whose_memory_takes_longer_than_the_window_may_runs_on(
    qemu: EagerQemu, job: CaptureJob
) -> None:
    """It stood still for a minute, whatever its owner had set."""
    qemu.is_large = True
    with pytest.raises(CaptureFailed, match=r"longer than 0\.1 s \(window_limit_seconds\)"):
        captured(replace(job, window_limit_seconds=0.1))
    assert (qemu.state_now, qemu.status) == (RUNNING, "cancelled")
    assert job.clock.timing().pause_ms < 5000


def test_a_stream_that_has_ended_already_is_not_waited_for(
    qemu: EagerQemu, job: CaptureJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody saw it active: all of a small guest was in the pipe by the first question."""
    look = qemu.look

    def ended() -> dict[str, Any]:
        state = look()
        return {**state, "status": "completed"} if state["status"] == "active" else state

    monkeypatch.setattr(qemu, "look", ended)
    captured(replace(job, window_limit_seconds=0.5))
