"""Turn what Xen, or xl, refuses into the failures that the drivers' interface has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapvm.attention import StuckPaused
from snapvm.failures import CommandFailed, CommandTimedOut, DomainFailed
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstandstill import MEND
from snapvm.model import Domain
from snapvm.refusals import DomainRefused


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn a failure of Xen into a refusal: nothing has been touched yet."""
    try:
        yield
    except XenFailed as failure:
        raise DomainRefused(domain=name, why=str(failure)) from failure


@contextmanager
def doing(deed: str, domain: Domain) -> Iterator[None]:
    """Turn a failure of Xen, of xl or of a file into ``DomainFailed``: the deed could not be done.

    A file may lack a descriptor, or memory: that of a configuration is in memory.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise DomainFailed(domain=domain.name, deed=deed, why=why) from error
    except (XenFailed, CommandFailed, CommandTimedOut) as failure:
        raise DomainFailed(domain=domain.name, deed=deed, why=str(failure)) from failure


def stuck(domain: Domain, why: str) -> StuckPaused:
    """Return the failure of a domain that stands still, and what mends it."""
    return StuckPaused(domain=domain.name, why=why, command=MEND)
