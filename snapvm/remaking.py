"""Writing the records that ``snapvm.rebuilding`` has put together, each under its domain's lock."""

from __future__ import annotations

import os
from collections.abc import Sequence

from snapvm import durable, rebuilding, recordfile, recordfolder
from snapvm.errors import SnapvmError, noting
from snapvm.host import Host
from snapvm.interrupt import nothing_is_left, shielded, what_is_done_stays
from snapvm.model import Record
from snapvm.rebuilding import Hopeless, Rebuilt
from snapvm.recordfolder import NAME_FILE, RECORD_FILE
from snapvm.refusals import RecordUnusable, SnapshotExists

_DAMAGED_FILE = f"{RECORD_FILE}.damaged"
"""What was found in the place of a record, for whoever can read it."""


def put_all(
    host: Host, rebuilt: Sequence[Rebuilt]
) -> tuple[tuple[Rebuilt, ...], tuple[Hopeless, ...]]:
    """Write records that can be made anew; return those that were, and why the others were not."""
    made: list[Rebuilt] = []
    hopeless: list[Hopeless] = []
    # The newest first: a domain whose name is lost too gets the one that it had last.
    for each in sorted(rebuilt, key=lambda each: each.record.place, reverse=True):
        failures: list[SnapvmError] = []
        with what_is_done_stays(), noting(failures):
            _put(host, each)
            made.append(each)
        hopeless += (Hopeless(ref=each.record.ref, why=str(failure)) for failure in failures)
    nothing_is_left()
    return tuple(each for each in rebuilt if each in made), tuple(hopeless)


def _put(host: Host, rebuilt: Rebuilt) -> None:
    """Write a record that can be made anew, as it is decided once more under the lock.

    Raises ``SnapshotExists`` when a good one is there, and ``RecordUnusable`` when it cannot be
    made any more, for it was deleted meanwhile or its volumes changed; ``Locked``.
    """
    catalog = host.catalog
    whose = rebuilt.record
    with catalog.locked(whose.domain_uuid, whose.domain), shielded():
        record = _decided_again(host, rebuilt.record)
        folder = catalog.folder(record.domain_uuid, record.id)
        if not folder.exists():
            catalog.put(
                record,
                catalog.aside(record.domain_uuid, record.id),
                name=_domain_name(host, record),
            )
            return
        path = folder / RECORD_FILE
        with durable.failing_as_storage(path):
            if os.path.lexists(path):
                # Not copied: it may be a pipe.  A folder without a record can be made anew as well.
                durable.rename(path, folder / _DAMAGED_FILE)
            durable.write(path, recordfile.dump(record).encode())


def _decided_again(host: Host, record: Record) -> Record:
    """Return it as it would be made now: a delete or a take may have ended since it was chosen."""
    if any(known.id == record.id for known in host.catalog.records(record.domain_uuid)):
        raise SnapshotExists(domain=record.domain, id=record.id)
    rebuilt, hopeless = rebuilding.look(host, only=record.set)
    for each in rebuilt:
        if (each.record.domain_uuid, each.record.id) == (record.domain_uuid, record.id):
            return each.record
    why = next((lost.why for lost in hopeless if lost.ref == record.ref), "its volumes are gone")
    path = host.catalog.folder(record.domain_uuid, record.id) / RECORD_FILE
    raise RecordUnusable(path=str(path), why=f"it cannot be made anew any more: {why}")


def _domain_name(host: Host, record: Record) -> str:
    """Return what the catalog is to call a domain: it may have been renamed since a record of it.

    What it says stays; where it says nothing, its newest record tells.
    """
    folder = host.catalog.folder(record.domain_uuid, record.id).parent
    if (folder / NAME_FILE).exists():
        return recordfolder.name_in(folder)
    records = host.catalog.records(record.domain_uuid)
    return max([record, *records], key=lambda each: each.place).domain
