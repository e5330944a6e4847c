"""Ask a guest to suspend itself, and withdraw the request, also that of a killed snapvm.

The request is a value in xenstore.  The guest accepts it by removing the value, and suspends a
little later; after that it cannot be withdrawn (tools/libs/light/libxl_dom_suspend.c).  So there is
also a note, where the guest cannot write, from before the request until the guest goes on.  Whoever
finds the note of a dead snapvm knows that the guest may be about to suspend, and would then stand
still for good.  The note lists the processes that are stopped meanwhile (`xenkeeper`).

An HVM guest without drivers for Xen cannot be asked, and Xen suspends it at once.
"""

from __future__ import annotations

import logging
import time

from snapvm import crashpoint
from snapvm.clock import Deadline
from snapvm.errors import quoted
from snapvm.hypervisor import xenkeeper, xenothers
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstore import CONFLICT, StoreRefused, XenStore

ACKNOWLEDGE_SECONDS = 60.0
STOP_SECONDS = 60.0
"""How long libxl waits as well (libxl_dom_suspend.c)."""
_LOOK_SECONDS = 0.002
_SUSPEND = "suspend"
_UNFOUND = (
    "no xl process was found that watches %s: if there is one, it ends now, as xl of Xen %d.%d "
    "does when a guest suspends, and nothing will start the guest again when it reboots"
)
_LIBVIRTS = (
    "%s was started by libvirt, which no longer notices its shutdown or reboot once it has "
    "suspended itself: restart virtxend or libvirtd; after a rollback it no longer belongs to "
    "libvirt"
)

log = logging.getLogger(__name__)


class SuspendRequest:
    """The request to one domain to suspend itself, made or still to be made; see the module."""

    def __init__(self, control: XenControl, store: XenStore, domid: int) -> None:
        self._control = control
        self._store = store
        self._domid = domid
        self._path = f"/local/domain/{domid}/control/shutdown"
        self._note = f"/libxl/{domid}/snapvm-suspend"
        self._held: tuple[int, ...] = ()

    @property
    def is_noted(self) -> bool:
        """Whether a request was made, by any snapvm, and the guest has not gone on since."""
        return self._store.read(self._note) is not None

    @property
    def is_anothers(self) -> bool:
        """Whether a guest that has suspended itself did so for somebody who is saving it now.

        Such as `xl save` when the host is shut down, which interrupts a `take` as well.
        """
        return xenothers.are_saving(self._domid) and not self.is_noted

    @property
    def holds_somebody(self) -> bool:
        """Whether processes are stopped because of a request, made by any snapvm."""
        return bool(self._store.read(self._note))

    @property
    def in_the_way(self) -> str:
        """A text on somebody else's request to the guest and how to withdraw it, or nothing.

        An `xl shutdown` that the guest ignores stays for ever.
        """
        word = self._store.read(self._path)
        if not word:
            return ""
        undone = f'xenstore-write {self._path} ""'
        return f"it has been asked to {quoted(word[:40])}: let it, or withdraw that with `{undone}`"

    def put(self) -> None:
        """Make the request."""
        with crashpoint.around("ask to suspend"):
            keepers = self._keepers()
            self._store.write(self._note, " ".join(map(str, keepers)))
            self._held = keepers
            xenkeeper.hold(keepers)
            if self._control.suspends_itself(self._domid):
                self._store.write(self._path, _SUSPEND)
            else:
                self._control.suspend(self._domid)

    def wait_until_taken(self) -> bool:
        """Wait until the guest accepts; return False after withdrawing a request it ignores."""
        deadline = Deadline(ACKNOWLEDGE_SECONDS)
        with self._store.watched(self._path):
            while self._store.read(self._path) == _SUSPEND:
                if not deadline.left_seconds:
                    return not self._withdraw()
                self._store.wait(deadline.left_seconds)
        return True

    def take_back(self) -> bool:
        """Withdraw the request or, if the guest has accepted it, wait until it has suspended.

        Returns whether it was accepted: if not, a guest that has suspended itself did so for
        somebody else.  If xenstore does not say whether it was, it is taken as accepted.

        The wait is at most ``STOP_SECONDS``, and there is none for a guest that is being destroyed,
        which Xen may list for ever.  A guest that somebody has paused runs during the wait, so that
        it suspends now and not later, when nobody would let it go on.
        """
        try:
            if not self.is_noted or self._withdraw():
                return False
        except XenFailed as failure:
            log.warning("domain %d may be about to suspend (%s): waiting", self._domid, failure)
        info = self._control.info(self._domid)
        is_held = info is not None and info.is_paused and not info.is_shut_down
        if is_held:
            self._control.unpause(self._domid)
        try:
            self._wait_until_suspended()
        finally:
            if is_held and self._control.info(self._domid) is not None:
                self._control.pause(self._domid)
        return True

    def _wait_until_suspended(self) -> None:
        deadline = Deadline(STOP_SECONDS)
        while deadline.left_seconds:
            info = self._control.info(self._domid)
            if info is None or info.is_dying or info.is_shut_down:
                return
            time.sleep(_LOOK_SECONDS)

    def let_go(self) -> None:
        """Let the processes go on that this request has stopped, whatever the guest does."""
        xenkeeper.let_go(self._held)
        self._held = ()

    def end(self) -> None:
        """Tell xenstore that the guest, which runs again, goes on; else it never reports its end.

        A failure is only logged, because the guest does not depend on it.
        """
        try:
            self._let_noted_go()
            self._store.resumed(self._domid)
            self._store.remove(self._note)
        except XenFailed as failure:
            log.warning(
                "domain %d runs again, and xenstored could not be told: %s", self._domid, failure
            )

    def _withdraw(self) -> bool:
        """Withdraw the request; return False when the guest has just accepted it.

        A guest that writes there all the time counts as one that has: nobody can tell.
        """
        try:
            is_withdrawn = self._store.replace(self._path, _SUSPEND, "")
        except StoreRefused as refused:
            if refused.code != CONFLICT:
                raise
            self._store.write(self._path, "")
            return False
        if is_withdrawn:
            self._let_noted_go()
            self._store.remove(self._note)
        return is_withdrawn

    def _keepers(self) -> tuple[int, ...]:
        """Return the processes to stop; warn of a keeper that is missing or cannot be stopped."""
        libraries = self._control.libraries
        name = self._store.read(f"/local/domain/{self._domid}/name") or ""
        info = self._control.info(self._domid)
        if info is not None and xenkeeper.is_libvirts(self._domid, info.uuid):
            log.warning(_LIBVIRTS, name)
            return ()
        if (libraries.major, libraries.minor) >= xenkeeper.STAYS_SINCE:
            return ()
        keepers = xenkeeper.keepers(name)
        if not keepers:
            log.warning(_UNFOUND, name, libraries.major, libraries.minor)
        return keepers

    def _let_noted_go(self) -> None:
        """Let the processes go on that the note lists, whoever wrote it."""
        noted = self._store.read(self._note) or ""
        xenkeeper.let_go(int(pid) for pid in noted.split() if pid.isdigit())
