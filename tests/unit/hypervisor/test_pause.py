"""The end of a pause: the domain runs again, or it is said at once why it cannot."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest

from snapvm import retry
from snapvm.attention import StuckPaused
from snapvm.clock import WindowClock
from snapvm.errors import ExitStatus, Interrupted
from snapvm.failures import CaptureFailed, DomainFailed, PausedMeanwhile, WindowBroken
from snapvm.hypervisor import libvirtlink, qmp
from snapvm.hypervisor import pause as pausing
from snapvm.hypervisor.pause import WatchedPause
from tests.unit.hypervisor.fakedomain import (
    ASLEEP,
    CRASHED,
    DOMAIN,
    NOT_RUNNING,
    PAUSED,
    RUNNING,
    SHUT_OFF,
    FakeDomain,
)


@pytest.fixture(autouse=True)
def _libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtlink, "libvirt", SimpleNamespace(libvirtError=OSError))
    monitor = SimpleNamespace(qemuMonitorCommand=lambda domain, *_: domain.answer())
    monkeypatch.setattr(qmp, "libvirt_qemu", monitor)


def capture(domain: FakeDomain, work: Callable[[], None]) -> None:
    """Do something in a window."""
    pause = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    with pause.ended_by_resume(leave_standing=False, when_failed=domain.let_go):
        pause.suspend()
        work()


@pytest.mark.parametrize("state", [SHUT_OFF, CRASHED, None])
def test_a_guest_that_ends_meanwhile_is_not_called_paused(state: int | None) -> None:
    """It powered itself off while its memory was written, and QEMU's stream ended with it."""
    domain = FakeDomain()

    def ends() -> None:
        domain.state_now = state
        raise CaptureFailed(domain="demo", why=str(NOT_RUNNING))

    with pytest.raises(WindowBroken, match="somebody stopped it, or it crashed"):
        capture(domain, ends)
    assert domain.asked == 2


def test_a_guest_that_goes_to_sleep_meanwhile_is_not_called_paused() -> None:
    """libvirt neither suspends nor resumes it: half a minute was spent on that, and status 8."""
    domain = FakeDomain()

    def sleeps() -> None:
        domain.state_now = ASLEEP
        raise CaptureFailed(domain="demo", why="domain is pmsuspended")

    with pytest.raises(WindowBroken, match="its guest went to sleep"):
        capture(domain, sleeps)
    assert domain.asked == 2


def test_a_transient_one_that_ends_last_is_not_called_paused_either() -> None:
    domain = FakeDomain()
    with pytest.raises(WindowBroken, match="somebody stopped it, or it crashed"):
        capture(domain, lambda: setattr(domain, "state_now", None))


def test_a_libvirtd_that_is_just_restarted_is_asked_again() -> None:
    domain = FakeDomain()

    def loses_it() -> None:
        domain.deaf = 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        capture(domain, loses_it)
    assert (domain.state_now, domain.deaf) == (RUNNING, 0)


def test_one_that_libvirt_works_on_is_not_paused() -> None:
    """A migration lets it be suspended, and then refuses to resume it for as long as it lasts."""
    domain = FakeDomain()
    domain.job = 2
    with pytest.raises(DomainFailed, match="migrate"):
        capture(domain, lambda: None)
    assert domain.state_now == RUNNING


@pytest.mark.parametrize("state", [PAUSED, SHUT_OFF, ASLEEP, None])
def test_one_that_does_not_run_any_more_is_left_so(state: int | None) -> None:
    """Its owner had paused it while stores were made: it ran again at the end of the window."""
    domain = FakeDomain()
    pause = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    domain.suspend()
    domain.state_now = state
    kind = PausedMeanwhile if state == PAUSED else WindowBroken
    freeze = partial(pytest.fail, "no agent answers then")
    with pytest.raises(kind), pause.ended_by_resume(leave_standing=False, freeze=freeze):
        pytest.fail("the block ran")
    assert domain.state_now == state


def test_one_that_is_paused_while_it_is_frozen_is_not_let_run() -> None:
    domain = FakeDomain()
    pause = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    window = pause.ended_by_resume(leave_standing=False, freeze=domain.suspend)
    with pytest.raises(PausedMeanwhile), window:
        pytest.fail("the block ran")
    assert domain.state_now == PAUSED


def test_one_that_was_paused_and_runs_again_before_its_window_is_captured() -> None:
    domain = FakeDomain()
    pause = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    domain.suspend()
    domain.resume()
    time.sleep(0.01)
    with pause.ended_by_resume(leave_standing=False):
        pause.suspend()
    assert domain.state_now == RUNNING


def test_one_that_somebody_let_run_just_when_its_window_ends_is_no_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU's clock does not tell for sure whether it was before: it ran once too often."""
    domain = FakeDomain()
    watched = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    resume = domain.resume

    def resumed_twice() -> None:
        resume()
        domain.suspend()
        resume()

    monkeypatch.setattr(domain, "resume", resumed_twice)
    with (
        pytest.raises(WindowBroken, match="somebody else made it run"),
        watched.ended_by_resume(leave_standing=False),
    ):
        watched.suspend()
    assert domain.state_now == RUNNING


@pytest.mark.parametrize("leave_standing", [False, True])
@pytest.mark.parametrize("stops_again", [False, True])
def test_one_that_somebody_let_run_in_its_window_is_no_capture(
    leave_standing: bool, stops_again: bool
) -> None:
    """What it wrote meanwhile may be on one disk's snapshot and not on another's."""
    domain = FakeDomain()
    watched = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    with (
        pytest.raises(WindowBroken, match="somebody else made it run"),
        watched.ended_by_resume(leave_standing=leave_standing),
    ):
        watched.suspend()
        domain.resume()
        if stops_again:
            domain.suspend()
        time.sleep(0.01)


def test_one_of_which_qemu_does_not_say_that_it_runs_again_is_no_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pausing, "EVENT_LIMIT_SECONDS", 0.01)
    domain = FakeDomain()
    monkeypatch.setattr(domain, "resume", lambda: setattr(domain, "state_now", RUNNING))
    with pytest.raises(WindowBroken, match="did not say that it runs again"):
        capture(domain, lambda: None)


@pytest.mark.parametrize("refusals", [2, 1000])
def test_one_that_libvirt_does_not_let_run_is_tried_again_and_not_called_put_back(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_RESTART_SECONDS", 0.01)
    domain, left = FakeDomain(), [*range(refusals)]
    resume = domain.resume

    def refuse() -> None:
        if left:
            left.pop()
            raise NOT_RUNNING
        resume()

    monkeypatch.setattr(domain, "resume", refuse)
    if refusals == 2:
        capture(domain, lambda: None)
        assert domain.state_now == RUNNING
        return
    with pytest.raises(StuckPaused) as stuck:
        capture(domain, lambda: None)
    assert stuck.value.exit_status is ExitStatus.ATTENTION and domain.state_now == PAUSED


def stream_beside(domain: FakeDomain, happens: Callable[[], None]) -> None:
    """Write memory beside the running domain, looking now and then who stops it."""
    pause = WatchedPause(DOMAIN, domain, domain.events, WindowClock())
    with (
        pause.ended_by_resume(leave_standing=False, when_failed=domain.let_go),
        pause.owners_kept(),
    ):
        pause.refuse_owners()
        happens()
        pause.refuse_owners()


def test_one_that_is_paused_while_memory_is_written_beside_it_stays_so() -> None:
    domain = FakeDomain()
    with pytest.raises(PausedMeanwhile, match="demo was paused by someone else"):
        stream_beside(domain, domain.suspend)
    assert domain.state_now == PAUSED


@pytest.mark.parametrize("run_state", ["paused", "finish-migrate"])
def test_ctrl_c_in_the_instant_of_its_owners_pause_does_not_let_it_run(run_state: str) -> None:
    """It came before anybody had looked again; a guest that QEMU has stopped runs on."""
    domain = FakeDomain(run_state=run_state)

    def interrupted() -> None:
        domain.suspend()
        raise Interrupted(signal="SIGINT")

    with pytest.raises(PausedMeanwhile if run_state == "paused" else Interrupted):
        stream_beside(domain, interrupted)
    assert domain.state_now == (PAUSED if run_state == "paused" else RUNNING)


def test_one_that_qemu_stops_for_the_last_of_its_stream_runs_again() -> None:
    domain = FakeDomain(run_state="finish-migrate")
    stream_beside(domain, domain.suspend)
    assert domain.state_now == RUNNING
