"""Start and end a libvirt domain, even if libvirtd is restarted meanwhile.

A libvirtd that is restarted, perhaps because its package is upgraded, does not answer the call that
it was given, but may have done what it was asked for.  Then the state of the domain tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapvm import crashpoint, retry
from snapvm.hypervisor import libvirtdomain, qemurun
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link, doing, spoken
from snapvm.model import Domain, DomainState

_DYING = 38
"""VIR_ERR_SYSTEM_ERROR (libvirt/virterror.h), where a domain is ended: its QEMU was killed, and is
there after 40 s (libvirt, virprocess.c, virProcessKillPainfullyDelay).  To give back hundreds of
GiB in small pages takes the kernel longer, and one that waits for a dead disk waits on."""
_ATTEMPTS = 15
"""So often libvirt is asked to end it: for ten minutes."""


@contextmanager
def watched(link: Link, domain: Domain, deed: str, *, paused: bool) -> Iterator[None]:
    """Run a block that starts a domain, and that may lose the connection while libvirt does it.

    A libvirtd that is away before is waited for.  Raises ``DomainFailed`` when the block fails, or
    the domain is in another state afterwards.
    """
    wanted = DomainState.PAUSED if paused else DomainState.RUNNING
    with doing(deed, domain):
        retry.libvirtd(lambda: link.connection)  # before it is asked for anything
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


def end(link: Link, domain: Domain) -> None:
    """End a domain at once; harmless when it is off.  Raises ``DomainFailed``.

    After a restart libvirtd is asked once more, and ends only the same run of the domain.
    """
    with doing("ended", domain):
        try:
            _destroy(link, domain)
        except LibvirtFailed as failure:
            if link.is_lost:
                retry.libvirtd(lambda: link.connection)
                _destroy(link, domain, run=domain.run)
            elif failure.code == _DYING:
                _outlast(link, domain)
            else:
                raise


def _outlast(link: Link, domain: Domain) -> None:
    """Wait for the end of a QEMU that was killed: it does not run again in any case."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            _destroy(link, domain)
        except LibvirtFailed as failure:
            if failure.code != _DYING or not left:
                raise
        else:
            return


def _destroy(link: Link, domain: Domain, run: str | None = None) -> None:
    try:
        handle = link.domain(domain.uuid)
    except LibvirtFailed as failure:
        if failure.is_unknown_domain:
            return
        raise
    with spoken():
        if handle.isActive() and (run is None or qemurun.of(handle) == run):
            with crashpoint.around("stop"):
                handle.destroy()


def _is_after_all(link: Link, domain: Domain, wanted: DomainState) -> bool:
    """Tell whether libvirtd, when it answers again, has the domain in a state."""
    try:
        retry.libvirtd(lambda: link.connection)
        return _state(link, domain) is wanted
    except LibvirtFailed:
        return False


def _state(link: Link, domain: Domain) -> DomainState:
    return libvirtdomain.state_of(link.domain(domain.uuid))
