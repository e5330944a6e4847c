"""The pause of a libvirt domain: made, measured by QEMU's own events, ended whatever happens."""

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
from snapvm.hypervisor.libvirtlink import (
    LibvirtFailed,
    RunEvent,
    RunEvents,
    doing,
    is_busy,
    spoken,
)
from snapvm.hypervisor.qmp import Qmp
from snapvm.hypervisor.witness import Witness
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

EVENT_LIMIT_SECONDS = 5.0

_STATE_RUNNING = 1
_STATE_PAUSED = 3
_STATE_ASLEEP = 7
"""Suspended to memory by the guest; libvirt neither suspends nor resumes it then."""
_STATES_ENDED = (5, 6)
"""Shut off and crashed (libvirt/libvirt-domain.h, virDomainState)."""
_STOPPED = "paused"
"""QEMU's name for a guest that it was told to stop (QAPI, RunState)."""


def refuse_busy(domain: Domain, handle: Any) -> None:
    """Raise ``DomainRefused`` for a domain that libvirt works on; nothing has been touched yet."""
    if is_busy(handle):
        name = shlex.quote(domain.name)
        raise DomainRefused(
            domain=domain.name,
            why="libvirt is running a job on it (a save, a migration, a dump, a backup)",
            remedy=f"wait for it to end (virsh domjobinfo {name}), or end it: virsh domjobabort "
            f"{name}",
        )


def require_resumable(domain: Domain, handle: Any) -> None:
    """Raise ``DomainFailed`` for a domain that could be suspended now, and not be resumed."""
    with doing("suspended", domain):
        if is_busy(handle):
            raise LibvirtFailed("libvirt has begun to save, migrate or back it up", 0)


class WatchedPause:
    """Makes a domain stand still, measures it by QEMU's own events, and makes it run again."""

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
        """Its owner has paused it, and it stays so."""

    def anew(self) -> WatchedPause:
        """Return another pause of the same domain, which what has been heard so far is not of."""
        return WatchedPause(self._domain, self._handle, self._events, self._clock)

    @contextmanager
    def ended_by_resume(
        self, *, leave_standing: bool, when_failed: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Run the block, which stops the domain; then make it run again, whatever happened.

        With ``leave_standing`` it runs again only when the block fails.  ``when_failed`` is what
        must come first when the block fails, done again with each attempt.  Raises ``WindowBroken``
        instead of running the block when the domain, which ran when its capture was prepared, does
        not run any more; it is left as it is then.
        """
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
        """Make the domain stand still; libvirt answers when its disks are drained and flushed."""
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
        """Raise ``PausedMeanwhile`` for one that its owner pauses in the block, before we do.

        It stays paused.  QEMU calls a guest otherwise that it has stopped itself for the last of a
        stream (``finish-migrate``); where it does not answer nobody knows.
        """
        if not self._was_running or self._is_asked or self.stopped_at() is None:
            return
        with suppress(LibvirtFailed):
            self._is_owners = Qmp(self._handle).execute("query-status")["status"] == _STOPPED
        if self._is_owners:
            raise PausedMeanwhile(domain=self._domain.name)

    @contextmanager
    def owners_kept(self) -> Iterator[None]:
        """Run a block that calls ``refuse_owners`` now and then; its failure is the last occasion.

        Ctrl-C may come between the owner's pause and the next look, and would undo it.
        """
        try:
            yield
        except SnapvmError:
            with shielded():
                self.refuse_owners()
            raise

    def stops_within(self, seconds: float) -> bool:
        """Wait so long, or until somebody else stops it; tell whether that happened."""
        events = self._events.wait_for("STOP", self._first, seconds)
        return any(event.name == "STOP" for event in events)

    def came_late(self) -> bool:
        """Whether it stood still already when ``suspend`` was called, by QEMU's own clock."""
        events = self._events.wait_for("STOP", self._first, EVENT_LIMIT_SECONDS)
        stops = [event.at for event in events if event.name == "STOP"]
        return not stops or stops[0] < self._asked_at

    def stopped_at(self) -> float | None:
        """Return when QEMU stopped the CPUs, by ``time.monotonic()``; None when it did not."""
        stops = [event.at for event in self._seen() if event.name == "STOP"]
        return stops[0] if stops else None

    def _seen(self) -> tuple[RunEvent, ...]:
        return self._events.seen()[self._first :]

    def _resume(self, first: Callable[[], None] | None) -> None:
        """Make it run; what libvirt shows is looked at afterwards, when the guest waits no more."""
        try:
            with spoken():
                if first is not None:
                    first()
                why_not = self._let_run()
                state = self._handle.state()[0]
        except LibvirtFailed as failure:
            if self._has_ended():
                raise self._ended() from failure
            raise StuckPaused(domain=self._domain.name, why=str(failure)) from failure
        self._require_awake(state)
        if state != _STATE_RUNNING:
            raise StuckPaused(
                domain=self._domain.name, why=why_not or "libvirt does not show it running"
            )

    def _require_running(self) -> None:
        """Raise ``WindowBroken`` for one that ran, and was paused or has ended meanwhile."""
        if not self._was_running:
            return
        try:
            with spoken():
                state = self._handle.state()[0]
        except LibvirtFailed as failure:
            if failure.is_unknown_domain:
                raise self._ended() from failure
            raise
        self._require_awake(state)
        if state == _STATE_PAUSED:
            raise PausedMeanwhile(domain=self._domain.name)

    def _require_awake(self, state: int) -> None:
        if state in _STATES_ENDED:
            raise self._ended()
        if state == _STATE_ASLEEP:
            raise self._broken("its guest went to sleep")

    def _has_ended(self) -> bool:
        """Whether there is nothing to resume; a transient domain is unknown when it has ended."""
        try:
            with spoken():
                return self._handle.state()[0] in _STATES_ENDED
        except LibvirtFailed as failure:
            return failure.is_unknown_domain

    def _ended(self) -> WindowBroken:
        return self._broken("somebody stopped it, or it crashed")

    def _broken(self, what: str) -> WindowBroken:
        return WindowBroken(domain=self._domain.name, what=what)

    def _let_run(self) -> str:
        """Say why libvirt refused: it may run already, or be gone."""
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
        """Raise ``WindowBroken`` when somebody else let the domain run inside the window."""
        resumes = [event for event in self._seen() if event.name == "RESUME"]
        early = [event for event in resumes if event.at < asked_at - 0.001]
        if early or len(resumes) > runs_again:
            raise self._broken("somebody else made it run")
        if runs_again and not resumes:
            raise self._broken("QEMU did not say that it runs again")
