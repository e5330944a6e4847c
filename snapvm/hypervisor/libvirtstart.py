"""See whether a libvirt domain was started as it was asked for.

A libvirtd that is restarted meanwhile, perhaps by an upgrade of its package, does not answer any
more, though it may have done what it was asked for.  Then the domain itself tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapvm import retry
from snapvm.hypervisor import libvirtdomain
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link, doing, spoken
from snapvm.model import Domain, DomainState


@contextmanager
def watched(link: Link, domain: Domain, deed: str, *, paused: bool) -> Iterator[None]:
    """Run a block that starts a domain, and that may lose the connection while libvirt does it.

    Raises ``DomainFailed`` when the block fails, or the domain is in another state afterwards.
    """
    wanted = DomainState.PAUSED if paused else DomainState.RUNNING
    with doing(deed, domain):
        try:
            with spoken():
                yield
        except LibvirtFailed:
            if not (link.is_lost and _is_after_all(link, domain, wanted)):
                raise
            return
        now = _state(link, domain)
        if now is not wanted:
            raise LibvirtFailed(f"it is {now} and not {wanted}", 0)


def _is_after_all(link: Link, domain: Domain, wanted: DomainState) -> bool:
    """Tell whether libvirtd, when it answers again, has the domain in a state."""
    try:
        retry.libvirtd(lambda: link.connection)
        return _state(link, domain) is wanted
    except LibvirtFailed:
        return False


def _state(link: Link, domain: Domain) -> DomainState:
    with spoken():
        number = link.domain(domain.uuid).state()[0]
    return libvirtdomain.STATES.get(number, DomainState.OTHER)
