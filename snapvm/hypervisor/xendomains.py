"""Find the domains of a Xen host by name and uuid, and tell what they do.

Names are in xenstore, uuids in Xen itself.  Only one domain has a name at a time, but several may
have one uuid, which Xen does not check (for example, a configuration file was copied with it).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendisks import BACKENDS
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstore import XenStore
from snapvm.model import Domain, DomainState, DomainUuid
from snapvm.refusals import DomainRefused

KERNELS = Path("/sys/bus/xen-backend/devices")
"""The kernel's side of the devices that it serves, such as ``vif-5-0``."""
_DOMAINS = "/local/domain"
_BACKENDS = "/local/domain/0/backend"
_POOLS = "/local/pool"
_USUAL_WORDS = ("poweroff", "reboot")
_GONE_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_ZOMBIE_PAGES = 1024
"""How many pages of a destroyed domain others may keep: the next domain has room all the same."""


class XenDomains:
    """Looks at the domains of this host; every failure is ``XenFailed``."""

    def __init__(self, control: XenControl, store: XenStore) -> None:
        self.control = control
        self._store = store

    def named(self, name: str) -> DomainInfo | None:
        """Return the domain with a name; None when there is none."""
        # The numbers are asked of Xen, because xenstored lists no more than 4096 bytes of them.
        return next((info for info in self._alive() if self._name(info.domid) == name), None)

    def known(self, domain: Domain) -> DomainInfo | None:
        """Return the present state of a domain that was found before; None when it is off.

        Of several domains with its uuid the one with its name is returned, or else the first.
        """
        found = self._of_uuid(domain.uuid)
        if len(found) < 2:  # without xenstored, which need not answer for one to be resumed
            return next(iter(found), None)
        return next((info for info in found if self._name(info.domid) == domain.name), found[0])

    def get(self, domain: Domain) -> DomainInfo:
        """Return the present state of a domain that was found before; raise ``XenFailed``."""
        info = self.known(domain)
        if info is None:
            raise XenFailed(f"there is no domain {domain.name} any more")
        return info

    def in_its_run(self, domain: Domain) -> DomainInfo:
        """Return the present state of a domain in the run in which it was found before.

        When its guest reboots it becomes another domain of the same uuid.  Raises ``XenFailed``.
        """
        info = self.get(domain)
        if str(info.domid) != domain.run:
            raise XenFailed("it has rebooted, or was started anew, meanwhile")
        return info

    def require_unique(self, domain: Domain) -> None:
        """Raise ``DomainRefused`` when another domain has its uuid: snapshots are kept by it."""
        found = self._of_uuid(domain.uuid)
        if len(found) > 1:
            names = ", ".join(str(self._name(info.domid)) for info in found)
            raise DomainRefused(
                domain=domain.name,
                why=f"several domains have its uuid {domain.uuid}: {names}",
                remedy="give each a `uuid` of its own: snapshots are filed by it",
            )

    def name_of(self, uuid: DomainUuid) -> str:
        """Return the name of a domain with this uuid; empty when none runs."""
        found = self._of_uuid(uuid)
        return self._name(found[0].domid) or "" if found else ""

    def pools(self) -> frozenset[str]:
        """Return the names and the numbers of the host's CPU pools (libxl_utils.c)."""
        numbers = self._store.names(_POOLS)
        names = (self._store.read(f"{_POOLS}/{number}/name") for number in numbers)
        return frozenset((*numbers, *(name for name in names if name)))

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of all domains that are not being destroyed."""
        return tuple(info.domid for info in self._alive())

    def has_no_word_for(self, domid: int, word: str) -> bool:
        """Tell whether a guest lists the requests that it supports, and not ``word``.

        Linux has that list since 4.11 (drivers/xen/manage.c, setup_shutdown_watcher).  Without a
        list, as after a restore, nothing is known.
        """
        told = {each: self._can(domid, each) for each in (*_USUAL_WORDS, word)}
        return any(told.values()) and not told[word]

    def served_by(self, domid: int) -> str:
        """Name a domain for which this one serves a device; return an empty text without one.

        Devices of domains that are gone may be left in xenstore, and do not count.
        """
        folder, alive = f"{_DOMAINS}/{domid}/backend", {str(number) for number in self.numbers()}
        for kind in self._store.names(folder):
            for other in self._store.names(f"{folder}/{kind}"):
                if other in alive and self._store.names(f"{folder}/{kind}/{other}"):
                    return self._name(int(other)) or other
        return ""

    def screen_port(self, domid: int) -> str:
        """Return the port on which a domain's QEMU listens for VNC; empty when on none.

        A guest cannot write there (tools/libs/light/libxl_device.c, libxl__device_generic_add).
        """
        return self._store.read(f"{_DOMAINS}/{domid}/console/vnc-port") or ""

    def is_going(self, domid: int) -> bool:
        """Tell whether a domain is being destroyed, or is gone."""
        info = self.control.info(domid)
        return info is None or info.is_dying

    def wait_until_gone(self, domid: int) -> None:
        """Wait until the backends have forgotten a destroyed domain, and its memory is free.

        The kernel gives devices back a little later than xl does: until then a disk is open, and
        the next domain cannot have the name of a network interface (``vifname``).  To free
        hundreds of GiB takes minutes, so the wait goes on while its memory shrinks.
        """
        backends = [f"{_BACKENDS}/{kind}/{domid}" for kind in BACKENDS]
        deadline, least = 0.0, math.inf
        while True:
            pages = self._pages_left(domid)
            is_served = any(map(self._store.names, backends)) or any(KERNELS.glob(f"*-{domid}-*"))
            if not pages and not is_served:
                return
            now = time.monotonic()
            if pages < least:
                deadline, least = now + _GONE_SECONDS, pages
            if now > deadline:
                raise XenFailed("it was destroyed and does not go")
            time.sleep(_LOOK_SECONDS)

    def _pages_left(self, domid: int) -> int:
        """Return how many pages a domain still has, without the few that others have mapped.

        Xen calls it dying when all that can be freed is (xen.git common/domain.c, domain_kill).
        """
        info = self.control.info(domid)
        is_freed = info is None or (info.is_dying and info.total_pages <= _ZOMBIE_PAGES)
        return 0 if info is None or is_freed else max(info.total_pages, 1)

    def _of_uuid(self, uuid: DomainUuid) -> list[DomainInfo]:
        return [info for info in self._alive() if info.uuid == uuid]

    def _alive(self) -> Iterator[DomainInfo]:
        return (info for info in self.control.domains() if not info.is_dying)

    def _can(self, domid: int, word: str) -> bool:
        return self._store.read(f"{_DOMAINS}/{domid}/control/feature-{word}") == "1"

    def _name(self, domid: int) -> str | None:
        return self._store.read(f"{_DOMAINS}/{domid}/name")


def state_of(info: DomainInfo) -> DomainState:
    """Return what a domain does, in libvirt's words."""
    if info.is_paused and (info.is_suspended or not info.is_shut_down):
        return DomainState.PAUSED
    if info.is_suspended:
        return DomainState.SUSPENDED
    if info.is_shut_down:
        return DomainState.CRASHED if info.is_crashed else DomainState.OTHER
    return DomainState.RUNNING
