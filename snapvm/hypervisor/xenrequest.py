"""Asking a PV guest to suspend itself; and taking that back, also for a snapvm that was killed.

The question stands in xenstore.  The guest answers by taking it away, and suspends a little later:
that cannot be called back (tools/libs/light/libxl_dom_suspend.c).  So a note stands beside it,
where no guest can write, from before the question until the guest goes on: whoever finds the note
of a snapvm that is gone knows that a guest which still runs may be about to stand still for good.
The note says which processes are held meanwhile (`xenkeeper`).
"""

from __future__ import annotations

import logging
import time

from snapvm import crashpoint
from snapvm.errors import quoted
from snapvm.hypervisor import xenkeeper
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstore import XenStore

ACKNOWLEDGE_SECONDS = 60.0
STOP_SECONDS = 60.0
"""As long as libxl waits (libxl_dom_suspend.c)."""
_LOOK_SECONDS = 0.002
_SUSPEND = "suspend"
_UNFOUND = (
    "no xl was found that looks after %s: one that does ends now, as xl of Xen %d.%d does when a "
    "guest suspends, and nobody starts the guest again when it reboots"
)
_LIBVIRTS = (
    "%s was started by libvirt, which does not see it shut down or reboot once it has suspended "
    "itself: restart virtxend or libvirtd for that; after a rollback it is not libvirt's any more"
)

log = logging.getLogger(__name__)


class SuspendRequest:
    """The request to suspend that one domain has been made, or is going to be; see the module."""

    def __init__(self, control: XenControl, store: XenStore, domid: int) -> None:
        self._control = control
        self._store = store
        self._domid = domid
        self._path = f"/local/domain/{domid}/control/shutdown"
        self._note = f"/libxl/{domid}/snapvm-suspend"
        self._held: tuple[int, ...] = ()

    @property
    def is_noted(self) -> bool:
        """Whether the guest was asked, by whomever, and was not told since that it goes on."""
        return self._store.read(self._note) is not None

    @property
    def holds_somebody(self) -> bool:
        """Whether processes are held, by whomever, because it was made."""
        return bool(self._store.read(self._note))

    @property
    def in_the_way(self) -> str:
        """What somebody else wants the guest to do, and how that is taken back; or nothing.

        A guest that does not heed `xl shutdown` is asked for ever.
        """
        word = self._store.read(self._path)
        if not word:
            return ""
        undone = f'xenstore-write {self._path} ""'
        return (
            f"it has been asked to {quoted(word[:40])}: let it, or take that back with `{undone}`"
        )

    def put(self) -> None:
        """Ask."""
        with crashpoint.around("ask to suspend"):
            keepers = self._keepers()
            self._store.write(self._note, " ".join(map(str, keepers)))
            self._held = keepers
            xenkeeper.hold(keepers)
            self._store.write(self._path, _SUSPEND)

    def wait_until_taken(self) -> bool:
        """Return True when the guest takes the question; False when it withdraws unanswered."""
        deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
        with self._store.watched(self._path):
            while self._store.read(self._path) == _SUSPEND:
                left = deadline - time.monotonic()
                if left <= 0:
                    return not self._withdraw()
                self._store.wait(left)
        return True

    def take_back(self) -> None:
        """Withdraw what was not taken; else return when the guest has suspended, and may go on.

        A guest that took it and does not suspend is not waited for longer than ``STOP_SECONDS``;
        one that is being destroyed not at all: Xen may list it for ever.  A store that does not say
        whether it was taken is no reason to leave one that has suspended itself.  One that somebody
        has paused meanwhile is let run for as long: whenever he let it run, it would stand still.
        """
        try:
            if not self.is_noted or self._withdraw():
                return
        except XenFailed as failure:
            log.warning("domain %d may be going to suspend (%s): waiting", self._domid, failure)
        info = self._control.info(self._domid)
        is_held = info is not None and info.is_paused and not info.is_shut_down
        if is_held:
            self._control.unpause(self._domid)
        try:
            self._wait_until_suspended()
        finally:
            if is_held:
                self._control.pause(self._domid)

    def _wait_until_suspended(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            info = self._control.info(self._domid)
            if info is None or info.is_dying or info.is_shut_down:
                return
            time.sleep(_LOOK_SECONDS)

    def let_go(self) -> None:
        """Let go what this request holds, whatever has become of the guest."""
        xenkeeper.let_go(self._held)
        self._held = ()

    def end(self) -> None:
        """Tell the store that the guest goes on, which runs already; else it never tells its end.

        A store that does not hear it is only told of: nothing of the guest depends on it.
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
        """Take the question back; False when the guest has just answered it."""
        is_withdrawn = self._store.replace(self._path, _SUSPEND, "")
        if is_withdrawn:
            self._let_noted_go()
            self._store.remove(self._note)
        return is_withdrawn

    def _keepers(self) -> tuple[int, ...]:
        """Return whom to hold; tell of who is not there, or will not see the domain any more."""
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
        """Let go whom the note names, whoever wrote it."""
        noted = self._store.read(self._note) or ""
        xenkeeper.let_go(int(pid) for pid in noted.split() if pid.isdigit())
