"""Pause a libvirt domain, measure the pause by QEMU's events, and end it whatever happens."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from snapvm import crashpoint, retry
from snapvm.attention import StuckPaused
from snapvm.clock import WindowClock
from snapvm.errors import SnapvmError
from snapvm.failures import PausedMeanwhile, WindowBroken
from snapvm.hypervisor import libvirtdomain
from snapvm.hypervisor.base import Freeze
from snapvm.hypervisor.libvirtlink import (
    LibvirtFailed,
    doing,
    is_busy,
    spoken,
)
from snapvm.hypervisor.qmp import Qmp
from snapvm.hypervisor.runevents import RunEvent, RunEvents
from snapvm.hypervisor.witness import Witness
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

EVENT_LIMIT_SECONDS = 5.0

_ENDED = (DomainState.SHUTOFF, DomainState.CRASHED)
_STOPPED = "paused"
"""QEMU's name for a guest that it was told to stop (QAPI, RunState)."""


def refuse_busy(domain: Domain, handle: Any) -> None:
    """Raise ``DomainRefused`` for a domain on which libvirt has a job."""
    if is_busy(handle):
        name = shlex.quote(domain.name)
        raise DomainRefused(
            domain=domain.name,
            why="libvirt is running a job on it (a save, a migration, a dump, a backup)",
            remedy=f"wait for it to end (virsh domjobinfo {name}), or end it: virsh domjobabort "
            f"{name}",
        )


def require_resumable(domain: Domain, handle: Any) -> None:
    """Raise ``DomainFailed`` for a domain that could be suspended now but not resumed."""
    with doing("suspended", domain):
        if is_busy(handle):
            raise LibvirtFailed("libvirt has begun to save, migrate or back it up", 0)


class WatchedPause:
    """Pauses a domain, measures the pause by QEMU's events, and resumes the domain."""

    def __init__(self, domain: Domain, handle: Any, events: RunEvents, clock: WindowClock) -> None:
        self._domain = domain
        self._handle = handle
        self._events = events
        self._clock = clock
        self._was_running = domain.state is DomainState.RUNNING
        self._first = len(events.seen())
        self._witness = Witness(domain, handle, events)
        self._asked_at = 0.0
        self._is_asked = False
        self._is_owners = False
        """Whether the domain's owner has paused it, so that it must stay paused."""

    def anew(self) -> WatchedPause:
        """Return another pause of the same domain, to which the events so far do not belong."""
        return WatchedPause(self._domain, self._handle, self._events, self._clock)

    @contextmanager
    def ended_by_resume(
        self,
        *,
        leave_standing: bool,
        freeze: Freeze | None = None,
        when_failed: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Run the block, which stops the domain; then resume the domain, whatever happened.

        With ``leave_standing`` it is resumed only when the block fails.  ``freeze`` is called
        before the block, but not of a domain that stands still already.  ``when_failed`` is called
        before each attempt to resume after a failed block.  Raises ``WindowBroken`` in place of the
        block, and leaves the domain alone, when it ran at the preparation but does not run now.
        """
        self._require_running()
        if freeze is not None:
            freeze()
            self._require_running()
        self._first = len(self._events.seen())
        runs_again = self._was_running
        has_failed = True
        try:
            yield
            has_failed = False
            runs_again = self._was_running and not leave_standing
        finally:
            with shielded():
                asked_at = time.monotonic()
                if runs_again and not self._is_owners:
                    retry.resume(lambda: self._resume(when_failed if has_failed else None))
                    self._measure(asked_at)
        self._check(asked_at, runs_again=runs_again)
        self._witness.check(stopped_at=self.stopped_at())

    def suspend(self) -> None:
        """Suspend the domain; libvirt answers when its disks are drained and flushed."""
        if not self._was_running:
            return
        self._asked_at = time.monotonic()
        self._is_asked = True
        require_resumable(self._domain, self._handle)
        with (
            doing("suspended", self._domain),
            crashpoint.around("suspend"),
            self._clock.part("suspend"),
        ):
            self._handle.suspend()

    def refuse_owners(self) -> None:
        """Raise ``PausedMeanwhile`` if the owner paused the domain before snapvm could.

        The domain stays paused then.  A guest that QEMU has stopped itself, for the end of a
        stream, has another run state (``finish-migrate``).  If QEMU does not answer nothing is
        known, and nothing is raised.
        """
        if not self._was_running or self._is_asked or self.stopped_at() is None:
            return
        with suppress(LibvirtFailed):
            self._is_owners = Qmp(self._handle).execute("query-status")["status"] == _STOPPED
        if self._is_owners:
            raise PausedMeanwhile(domain=self._domain.name)

    @contextmanager
    def owners_kept(self) -> Iterator[None]:
        """Run a block that calls ``refuse_owners`` now and then; call it again if the block fails.

        Otherwise a Ctrl-C between the owner's pause and the next call would undo that pause.
        """
        try:
            yield
        except SnapvmError:
            with shielded():
                self.refuse_owners()
            raise

    def stops_within(self, seconds: float) -> bool:
        """Wait until somebody stops the domain, or the time is over; tell if it was stopped."""
        events = self._events.wait_for("STOP", self._first, seconds)
        return any(event.name == "STOP" for event in events)

    def came_late(self) -> bool:
        """Tell by QEMU's clock whether the domain had stopped before ``suspend`` was called."""
        events = self._events.wait_for("STOP", self._first, EVENT_LIMIT_SECONDS)
        stops = [event.at for event in events if event.name == "STOP"]
        return not stops or stops[0] < self._asked_at

    def stopped_at(self) -> float | None:
        """Return when QEMU stopped the vCPUs, by ``time.monotonic()``; None when it did not."""
        stops = [event.at for event in self._seen() if event.name == "STOP"]
        return stops[0] if stops else None

    def _seen(self) -> tuple[RunEvent, ...]:
        return self._events.seen()[self._first :]

    def _resume(self, first: Callable[[], None] | None) -> None:
        """Resume the domain first, and only then look at its state: the guest must not wait."""
        try:
            with spoken():
                if first is not None:
                    first()
                why_not = self._let_run()
                state = libvirtdomain.state_of(self._handle)
        except LibvirtFailed as failure:
            if self._has_ended():
                raise self._ended() from failure
            raise StuckPaused(domain=self._domain.name, why=str(failure)) from failure
        self._require_awake(state)
        if state is not DomainState.RUNNING:
            raise StuckPaused(
                domain=self._domain.name, why=why_not or "libvirt does not show it running"
            )

    def _require_running(self) -> None:
        """Raise ``WindowBroken`` if the domain ran and was paused or has ended meanwhile."""
        if not self._was_running:
            return
        try:
            state = libvirtdomain.state_of(self._handle)
        except LibvirtFailed as failure:
            if failure.is_unknown_domain:
                raise self._ended() from failure
            raise
        self._require_awake(state)
        if state is DomainState.PAUSED:
            raise PausedMeanwhile(domain=self._domain.name)

    def _require_awake(self, state: DomainState) -> None:
        if state in _ENDED:
            raise self._ended()
        if state is DomainState.SUSPENDED:  # libvirt neither suspends nor resumes it then
            raise self._broken("its guest went to sleep")

    def _has_ended(self) -> bool:
        """Tell whether the domain has ended; libvirt forgets a transient one then."""
        try:
            return libvirtdomain.state_of(self._handle) in _ENDED
        except LibvirtFailed as failure:
            return failure.is_unknown_domain

    def _ended(self) -> WindowBroken:
        return self._broken("somebody stopped it, or it crashed")

    def _broken(self, what: str) -> WindowBroken:
        return WindowBroken(domain=self._domain.name, what=what)

    def _let_run(self) -> str:
        """Resume; return why libvirt refused, as for a domain that runs or is gone, or nothing."""
        try:
            with spoken(), crashpoint.around("resume"):
                self._handle.resume()
        except LibvirtFailed as failure:
            return str(failure)
        return ""

    def _measure(self, asked_at: float) -> None:
        if self.stopped_at() is None:
            return
        events = self._events.wait_for("RESUME", self._first, EVENT_LIMIT_SECONDS)
        stops = [event.at for event in events if event.name == "STOP"]
        resumes = [event.at for event in events if event.name == "RESUME"]
        if stops and resumes:
            self._clock.stopped(stops[0])
            self._clock.resumed(resumes[-1])
            self._clock.add_part("resume", asked_at, resumes[-1])

    def _check(self, asked_at: float, *, runs_again: bool) -> None:
        """Raise ``WindowBroken`` when somebody else resumed the domain in the pause."""
        resumes = [event for event in self._seen() if event.name == "RESUME"]
        early = [event for event in resumes if event.at < asked_at - 0.001]
        if early or len(resumes) > runs_again:
            raise self._broken("somebody else made it run")
        if runs_again and not resumes:
            raise self._broken("QEMU did not say that it runs again")
