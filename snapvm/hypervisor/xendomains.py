"""The domains of a Xen host: who has which name and uuid, and what each does.

Names stand in xenstore, uuids in Xen itself.  A name belongs to one domain at a time; a uuid may be
that of several, for Xen does not look at it (a configuration file that was copied with its uuid).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from snapvm.hypervisor.xencontrol import DomainInfo, XenControl
from snapvm.hypervisor.xendisks import BACKENDS
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstore import XenStore
from snapvm.model import Domain, DomainState, DomainUuid
from snapvm.refusals import DomainRefused

_DOMAINS = "/local/domain"
_BACKENDS = "/local/domain/0/backend"
_USUAL_WORDS = ("poweroff", "reboot")
_GONE_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_ZOMBIE_PAGES = 1024
"""What a peer may keep of a domain that is no more; there is room for the next all the same."""


class XenDomains:
    """Looks at the domains of this host; every failure is ``XenFailed``."""

    def __init__(self, control: XenControl, store: XenStore) -> None:
        self._control = control
        self._store = store

    def named(self, name: str) -> DomainInfo | None:
        """Return what Xen says of the domain of a name."""
        # Xen is asked for them: xenstored lists no more than 4096 bytes of numbers.
        return next((info for info in self._alive() if self._name(info.domid) == name), None)

    def known(self, domain: Domain) -> DomainInfo | None:
        """Return what Xen says of a domain that was found before; None when it is off.

        Of several with its uuid it is the one with its name; renamed, it is still itself.
        """
        found = self._of_uuid(domain.uuid)
        if len(found) < 2:  # without xenstored, which need not answer for one to be resumed
            return next(iter(found), None)
        return next((info for info in found if self._name(info.domid) == domain.name), found[0])

    def get(self, domain: Domain) -> DomainInfo:
        """Return the same, or raise ``XenFailed``."""
        info = self.known(domain)
        if info is None:
            raise XenFailed(f"there is no domain {domain.name} any more")
        return info

    def require_unique(self, domain: Domain) -> None:
        """Raise ``DomainRefused`` when another has its uuid, under which its snapshots are kept."""
        found = self._of_uuid(domain.uuid)
        if len(found) > 1:
            names = ", ".join(str(self._name(info.domid)) for info in found)
            raise DomainRefused(
                domain=domain.name,
                why=f"several domains have its uuid {domain.uuid}: {names}",
                remedy="give each a `uuid` of its own: snapshots are kept by it",
            )

    def name_of(self, uuid: DomainUuid) -> str:
        """Return the name of a domain with this uuid; empty when none runs."""
        found = self._of_uuid(uuid)
        return self._name(found[0].domid) or "" if found else ""

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of all domains that are not just being destroyed."""
        return tuple(info.domid for info in self._alive())

    def has_no_word_for(self, domid: int, word: str) -> bool:
        """Tell whether a guest says what it can be asked to do (``xl shutdown``), and not this.

        Linux does, since 4.11 (drivers/xen/manage.c, setup_shutdown_watcher); of one that says
        nothing, as after a restore, nothing is known.
        """
        told = {each: self._can(domid, each) for each in (*_USUAL_WORDS, word)}
        return any(told.values()) and not told[word]

    def served_by(self, domid: int) -> str:
        """Name a domain of which this one serves a device; return an empty text when it does not.

        Who is gone may have left his in xenstore.
        """
        folder, alive = f"{_DOMAINS}/{domid}/backend", {str(number) for number in self.numbers()}
        for kind in self._store.names(folder):
            for other in self._store.names(f"{folder}/{kind}"):
                if other in alive and self._store.names(f"{folder}/{kind}/{other}"):
                    return self._name(int(other)) or other
        return ""

    def is_going(self, domid: int) -> bool:
        """Whether a domain is being destroyed, or is not there any more."""
        info = self._control.info(domid)
        return info is None or info.is_dying

    def wait_until_gone(self, domid: int) -> None:
        """Wait until the backends have forgotten a destroyed domain, and its memory is free.

        To free hundreds of GiB takes minutes.  So it may take as long as its memory becomes less.
        """
        backends = [f"{_BACKENDS}/{kind}/{domid}" for kind in BACKENDS]
        deadline, least = 0.0, math.inf
        while True:
            pages = self._pages_left(domid)
            if not pages and not any(map(self._store.names, backends)):
                return
            now = time.monotonic()
            if pages < least:
                deadline, least = now + _GONE_SECONDS, pages
            if now > deadline:
                raise XenFailed("it was destroyed and does not go")
            time.sleep(_LOOK_SECONDS)

    def _pages_left(self, domid: int) -> int:
        """Say how much it still has; pages that others have mapped and Xen keeps count for none.

        Xen calls it dying when all that can be freed is (xen.git common/domain.c, domain_kill).
        """
        info = self._control.info(domid)
        is_freed = info is None or (info.is_dying and info.total_pages <= _ZOMBIE_PAGES)
        return 0 if info is None or is_freed else max(info.total_pages, 1)

    def _of_uuid(self, uuid: DomainUuid) -> list[DomainInfo]:
        return [info for info in self._alive() if info.uuid == uuid]

    def _alive(self) -> Iterator[DomainInfo]:
        return (info for info in self._control.domains() if not info.is_dying)

    def _can(self, domid: int, word: str) -> bool:
        return self._store.read(f"{_DOMAINS}/{domid}/control/feature-{word}") == "1"

    def _name(self, domid: int) -> str | None:
        return self._store.read(f"{_DOMAINS}/{domid}/name")


def state_of(info: DomainInfo) -> DomainState:
    """Say what a domain does."""
    if info.is_paused and (info.is_suspended or not info.is_shut_down):
        return DomainState.PAUSED
    if info.is_suspended:
        return DomainState.SUSPENDED
    if info.is_shut_down:
        return DomainState.CRASHED if info.is_crashed else DomainState.OTHER
    return DomainState.RUNNING
