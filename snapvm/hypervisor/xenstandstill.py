"""Make a Xen domain stand still, by its own suspend or only by a pause; and make it run again.

A guest must suspend itself before its memory is saved: a PV guest pins its page tables and writes
the frames of its rings as PFNs.  Each waits in a hypercall that tells it afterwards whether it is a
restored copy or simply goes on (Linux: drivers/xen/manage.c).  When it goes on ("fast resume") its
devices are still connected.  The QEMU of an HVM domain has to go on first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from snapvm import crashpoint, retry
from snapvm.attention import StuckPaused
from snapvm.clock import Deadline, WindowClock
from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor import xenothers, xenqemu, xenrequest
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenrequest import SuspendRequest
from snapvm.hypervisor.xenstore import XenStore
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState

_LOOK_SECONDS = 0.002
_PAUSED = "somebody else paused it"
"""Which keeps it from suspending itself."""
MEND = "snapvm repair"
"""The command that unpauses a domain or makes a suspended one go on; xl before 4.20 cannot."""


class Standstill:
    """One pause of one domain."""

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
        """Pause the domain for the block; a domain that its owner had paused stays paused."""
        with self._ended(leave_standing=leave_standing):
            if self._domain.state is DomainState.RUNNING:
                self._pause()
                self._clock.stopped()
            yield

    def require_unasked(self) -> None:
        """Raise ``CaptureFailed`` when somebody else's request to the guest prevents a suspend."""
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
        """Make the request and wait until the guest accepts it; it cannot be withdrawn then."""
        self._require_running()
        self.require_unasked()
        with shielded():
            self._is_asked = True
            self._request.put()
        if not self._request.wait_until_taken():
            self._require_running()
            seconds = xenrequest.ACKNOWLEDGE_SECONDS
            raise self._failed(f"the guest did not answer within {seconds:g} s")
        self._clock.stopped()

    def _require_running(self) -> None:
        """Raise ``WindowBroken`` for a guest that has stopped, or is being saved by somebody else.

        Memory has been copied since that was looked at last, and `xl save` may have begun then.  It
        would be answered for us, or made to go on while it is written.
        """
        info = self._control.info(self._domid)
        what = ""
        if info is None or info.is_dying:
            what = "somebody destroyed it"
        elif info.is_suspended:
            what = "somebody else had it suspend itself"
        elif info.is_shut_down:
            what = "it shut down or crashed"
        elif info.is_paused:
            what = _PAUSED
        elif xenothers.are_saving(self._domid):
            what = "somebody else saves or migrates it"
        if what:
            raise self._broken(what)

    def _wait_for_stop(self) -> None:
        deadline = Deadline(xenrequest.STOP_SECONDS)
        while True:
            info = self._control.info(self._domid)
            if info is None or info.is_dying:
                raise self._broken("somebody destroyed it")
            if info.is_suspended:
                self._is_suspended = True
                return
            if info.is_shut_down:
                raise self._broken("it shut down or crashed")
            if info.is_paused:
                raise self._broken(_PAUSED)
            if not deadline.left_seconds:
                seconds = deadline.seconds
                what = f"it accepted the request to suspend, but did not within {seconds:g} s"
                raise self._failed(what)
            time.sleep(_LOOK_SECONDS)

    def _pause(self) -> None:
        with self._failing(), crashpoint.around("suspend"), shielded():
            self._control.pause(self._domid)
            self._is_paused = True

    # --- running again ---

    @contextmanager
    def _ended(self, *, leave_standing: bool) -> Iterator[None]:
        """Run the block, which stops the domain; then make it run again, whatever happened.

        With ``leave_standing`` it runs again only when the block fails.  Processes that were
        stopped for it stay so until the domain ends or runs again.
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
            raise self._broken(what)

    def _go_on(self) -> None:
        with shielded():
            asked_at = time.monotonic()
            with crashpoint.around("resume"):
                retry.resume(self._resume)
            if self._domain.state is DomainState.RUNNING:
                self._clock.resumed()
            self._clock.add_part("resume", asked_at, time.monotonic())

    def _disturbance(self) -> str:
        """Say what somebody else did to the domain in the pause; return nothing if nothing."""
        info = self._control.info(self._domid)
        if info is None or info.is_dying:
            return "somebody destroyed it"
        if self._is_suspended and not info.is_suspended:
            return "somebody else resumed it"
        return "" if info.is_paused else "somebody else unpaused it"

    def _resume(self) -> None:
        """Undo step by step what stopped the domain; may be called again after a failure."""
        try:
            info = self._control.info(self._domid)
            if info is None or info.is_dying:
                return
            has_accepted = self._is_suspended
            if self._is_asked and not has_accepted:
                has_accepted = self._request.take_back()
            lift(self._control, self._domid, suspend=has_accepted, pause=self._is_paused)
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

    def _broken(self, what: str) -> WindowBroken:
        return WindowBroken(domain=self._domain.name, what=what)


def unwatch(control: XenControl, store: XenStore, domid: int) -> None:
    """Let the processes go on that are stopped for a domain that is about to be ended.

    Before that its suspend is ended, but it stays paused: the processes must not see a suspended
    domain, and they will see its end.
    """
    request = SuspendRequest(control, store, domid)
    if request.holds_somebody:
        with suppress(XenFailed):  # the domain will be ended in any case
            lift(control, domid, suspend=True, pause=False)
        request.end()


def lift(control: XenControl, domid: int, *, suspend: bool, pause: bool) -> None:
    """End the ``suspend`` of a domain that has suspended itself, and take one ``pause`` back.

    A suspend that somebody else has asked for is not ended, nor does QEMU go on in it: he may be
    writing their state.  Harmless for a domain that runs, is being destroyed, or is gone.  Its QEMU
    runs again before it does.
    """
    info = control.info(domid)
    if info is None or info.is_dying:
        return
    is_anothers = info.is_suspended and not suspend
    try:
        if info.is_hvm and (suspend or pause) and not is_anothers:
            xenqemu.go_on(domid)
    finally:
        if suspend and info.is_suspended:
            control.resume(domid)
        if pause and info.is_paused:
            control.unpause(domid)
