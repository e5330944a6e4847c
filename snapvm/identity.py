"""Under which uuids a machine is known: its locks are held, and its journals found, under all.

libvirt keeps a uuid for as long as a domain is defined: another one means another domain.  One of
xl's that is created anew has another uuid unless its configuration has one, and is the same machine
on the same disks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from snapvm.catalog import Catalog
from snapvm.errors import UnknownDomain
from snapvm.hypervisor.base import Hypervisor
from snapvm.model import Domain, DomainUuid, HypervisorKind, Progress, Record
from snapvm.refusals import DomainRefused


@contextmanager
def locked(
    catalog: Catalog, whose: Domain | Record, progress: Progress
) -> Iterator[tuple[DomainUuid, ...]]:
    """Hold the locks of a domain, or of a record's, for a block; yield its uuids.

    Somebody who waits for them is told so.  Raises ``Locked``, and ``StorageFailed``.
    """
    uuid, name = (
        (whose.uuid, whose.name) if isinstance(whose, Domain) else (whose.domain_uuid, whose.domain)
    )
    others = catalog.uuids_of(name) if whose.hypervisor is HypervisorKind.XEN else ()
    # In one order, so that no two wait for each other.
    uuids = tuple(sorted({uuid, *others}))
    progress.phase(f"waiting for the lock of {name}")
    with ExitStack() as stack:
        for each in uuids:
            stack.enter_context(catalog.locked(each, name))
        yield uuids


def chosen(
    catalog: Catalog, hypervisor: Hypervisor, name: str | None
) -> tuple[tuple[DomainUuid, str], ...]:
    """Return uuid and name in the catalog of the domains that a name or a uuid means; all for None.

    One that was renamed is meant by its new name too, which only its hypervisor knows; so is one
    without snapshots.  Raises ``UnknownDomain`` for one that neither has any nor is known to its
    hypervisor.
    """
    domains = catalog.domains()
    if name is None:
        return domains
    now, failure = None, None
    try:
        now = hypervisor.find(name).uuid
    except (UnknownDomain, DomainRefused) as error:
        failure = error
    found = tuple((uuid, known) for uuid, known in domains if name in (uuid, known) or uuid == now)
    if failure is not None and not found:
        raise failure
    return found if found or now is None else ((now, name),)
