"""A Xen domain standing still: suspended by its own deed, or only paused; and running again.

A PV guest must suspend itself before its memory is saved: it hands its page tables over pinned, its
rings' frames as PFNs, and waits in a hypercall that tells it afterwards whether it is a restored
copy or simply goes on (Linux: drivers/xen/manage.c).  Going on ("fast resume") its devices stay
connected: nothing happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from snapvm import crashpoint, retry
from snapvm.attention import StuckPaused
from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor import xenrequest
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenrequest import SuspendRequest
from snapvm.hypervisor.xenstore import XenStore
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState

_LOOK_SECONDS = 0.002
MEND = "snapvm repair"
"""Lifts a pause, and lets one go on that has suspended itself: xl before 4.20 cannot do that."""


class Standstill:
    """One window of one domain."""

    def __init__(
        self,
        domain: Domain,
        domid: int,
        control: XenControl,
        store: XenStore,
        clock: WindowClock,
    ) -> None:
        self._domain = domain
        self._domid = domid
        self._control = control
        self._clock = clock
        self._request = SuspendRequest(control, store, domid)
        self._is_asked = False
        self._is_suspended = False
        self._is_paused = False

    @contextmanager
    def suspended(self, *, leave_standing: bool = False) -> Iterator[None]:
        """Let the guest suspend itself, and pause it, for the block."""
        with self._ended(leave_standing=leave_standing):
            self._suspend()
            self._pause()
            yield

    @contextmanager
    def paused(self, *, leave_standing: bool = False) -> Iterator[None]:
        """Only pause it for the block; one that its owner had paused stays so."""
        with self._ended(leave_standing=leave_standing):
            if self._domain.state is DomainState.RUNNING:
                self._pause()
                self._clock.stopped()
            yield

    def require_unasked(self) -> None:
        """Raise ``CaptureFailed`` when a request of somebody else's is in the way of a suspend."""
        with self._failing():
            why = self._request.in_the_way
        if why:
            raise self._failed(why)

    # --- standing still ---

    def _suspend(self) -> None:
        with self._clock.part("suspend"), self._failing():
            self._ask()
            self._wait_for_stop()

    def _ask(self) -> None:
        """Ask, and wait until the guest takes the question; it cannot be called back then."""
        self.require_unasked()
        with shielded():
            self._is_asked = True
            self._request.put()
        if not self._request.wait_until_taken():
            seconds = xenrequest.ACKNOWLEDGE_SECONDS
            raise self._failed(f"the guest did not answer within {seconds:g} s")
        self._clock.stopped()

    def _wait_for_stop(self) -> None:
        deadline = time.monotonic() + xenrequest.STOP_SECONDS
        while True:
            info = self._control.info(self._domid)
            if info is None or info.is_dying:
                raise WindowBroken(domain=self._domain.name, what="somebody destroyed it")
            if info.is_suspended:
                self._is_suspended = True
                return
            if info.is_shut_down:
                raise WindowBroken(domain=self._domain.name, what="it shut down or crashed")
            if info.is_paused:  # which keeps it from suspending itself
                raise WindowBroken(domain=self._domain.name, what="somebody else paused it")
            if time.monotonic() > deadline:
                seconds = xenrequest.STOP_SECONDS
                raise self._failed(f"it took the request to suspend and did not in {seconds:g} s")
            time.sleep(_LOOK_SECONDS)

    def _pause(self) -> None:
        with self._failing(), crashpoint.around("suspend"), shielded():
            self._control.pause(self._domid)
            self._is_paused = True

    # --- running again ---

    @contextmanager
    def _ended(self, *, leave_standing: bool) -> Iterator[None]:
        """Run the block, which stops the domain; then make it run again, whatever happened.

        With ``leave_standing`` it runs again only when the block fails; who is held for it stays so
        until it ends or, whatever comes in between, runs on.
        """
        what = ""
        stays = False
        try:
            yield
            with self._failing():
                what = self._disturbance()
            stays = leave_standing and not what
        finally:
            try:
                if not stays:
                    self._go_on()
            finally:
                if not stays:
                    self._request.let_go()
        if what:
            raise WindowBroken(domain=self._domain.name, what=what)

    def _go_on(self) -> None:
        with shielded():
            asked_at = time.monotonic()
            with crashpoint.around("resume"):
                retry.resume(self._resume)
            if self._domain.state is DomainState.RUNNING:
                self._clock.resumed()
            self._clock.add_part("resume", asked_at, time.monotonic())

    def _disturbance(self) -> str:
        """Say what somebody else did to the domain in the window; empty when nothing."""
        info = self._control.info(self._domid)
        if info is None or info.is_dying:
            return "somebody destroyed it"
        if self._is_suspended and not info.is_suspended:
            return "somebody else made it go on"
        return "" if info.is_paused else "somebody else unpaused it"

    def _resume(self) -> None:
        """Take back what was done, step by step; may be called again after a failure."""
        try:
            info = self._control.info(self._domid)
            if info is None or info.is_dying:
                return
            if self._is_asked and not self._is_suspended:
                self._request.take_back()
            lift(self._control, self._domid, pause=self._is_paused)
            self._is_suspended = self._is_paused = False
        except XenFailed as failure:
            why = str(failure)
            raise StuckPaused(domain=self._domain.name, why=why, command=MEND) from failure
        if self._is_asked:
            self._request.end()
            self._is_asked = False

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except XenFailed as failure:
            raise self._failed(str(failure)) from failure

    def _failed(self, why: str) -> CaptureFailed:
        return CaptureFailed(domain=self._domain.name, why=why)


def unwatch(control: XenControl, store: XenStore, domid: int) -> None:
    """Let go who is held for a domain that stands still and is about to be ended.

    It does not suspend any more then, and stays paused: they see that, and later its end.
    """
    request = SuspendRequest(control, store, domid)
    if request.holds_somebody:
        with suppress(XenFailed):  # it is ended all the same
            lift(control, domid, pause=False)
        request.end()


def lift(control: XenControl, domid: int, *, pause: bool) -> None:
    """Let a domain go on that has suspended itself; and take one pause back, with ``pause``.

    Harmless for a domain that runs, is being destroyed, or is not there any more.
    """
    info = control.info(domid)
    if info is None or info.is_dying:
        return
    if info.is_suspended:
        control.resume(domid)
    if pause and info.is_paused:
        control.unpause(domid)
