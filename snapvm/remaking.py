"""Writing the records that ``snapvm.rebuilding`` has put together, each under its domain's lock."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from snapvm import durable, rebuilding, recordfile, recordfolder
from snapvm.errors import SnapvmError, UnknownSnapshot
from snapvm.host import Host
from snapvm.interrupt import nothing_is_left, shielded, what_is_done_stays
from snapvm.model import DomainUuid, Record, SnapshotId
from snapvm.rebuilding import Hopeless, Rebuilt
from snapvm.recordfolder import NAME_FILE, RECORD_FILE
from snapvm.refusals import RecordUnusable, SnapshotExists
from snapvm.severalfailures import noting

_DAMAGED_FILE = f"{RECORD_FILE}.damaged"
"""What was found in the place of a record, for whoever can read it."""

_Look = tuple[tuple[Rebuilt, ...], tuple[Hopeless, ...]]
_Place = tuple[DomainUuid, SnapshotId]


def put_all(
    host: Host, rebuilt: Sequence[Rebuilt]
) -> tuple[tuple[Rebuilt, ...], tuple[Hopeless, ...]]:
    """Write records that can be made anew; return those that were, and why the others were not."""
    whys: dict[_Place, str] = {}
    by_domain: dict[DomainUuid, list[Record]] = {}
    # The newest first: a domain whose name is lost too gets the one that it had last.
    for record in sorted((each.record for each in rebuilt), key=lambda r: r.place, reverse=True):
        by_domain.setdefault(record.domain_uuid, []).append(record)
    for records in by_domain.values():
        with what_is_done_stays():
            whys |= _put_its(host, records)
    nothing_is_left()
    hopeless = (
        Hopeless(ref=each.record.ref, why=whys.get(_place(each.record), "")) for each in rebuilt
    )
    made = tuple(each for each in rebuilt if _place(each.record) not in whys)
    return made, tuple(each for each in hopeless if each.why)


def _put_its(host: Host, records: Sequence[Record]) -> dict[_Place, str]:
    """Write records of one domain; return those that could not be written, each with the reason.

    They are decided once more under the lock, all at once: for each of a thousand to read all the
    others and to ask LVM would take an hour.
    """
    whys: dict[_Place, str] = {}
    failures: list[SnapvmError] = []
    left = list(records)
    with noting(failures), host.catalog.locked(left[0].domain_uuid, left[0].domain):
        now = rebuilding.look(host, only={record.set for record in left})
        while left:
            record = left.pop(0)
            its: list[SnapvmError] = []
            with noting(its), shielded():
                _put(host, _decided_again(host, record, now))
            whys |= {_place(record): str(failure) for failure in its}
    return whys | {_place(record): str(failure) for failure in failures for record in left}


def _place(record: Record) -> _Place:
    return record.domain_uuid, record.id


def _put(host: Host, record: Record) -> None:
    """Write a record where there is none, or a damaged one, which is kept beside it."""
    catalog = host.catalog
    folder = catalog.folder(record.domain_uuid, record.id)
    with durable.failing_untouched(folder):
        is_bare = not durable.is_there(folder)
    if is_bare:
        aside = catalog.aside(record.domain_uuid, record.id)
        catalog.put(record, aside, name=_domain_name(host, record))
        return
    path = folder / RECORD_FILE
    with durable.failing_as_storage(path):
        if durable.is_there(path):
            # Not copied: it may be a pipe.  A folder without a record can be made anew as well.
            durable.rename(path, folder / _DAMAGED_FILE)
        durable.write(path, recordfile.dump(record).encode())


def _decided_again(host: Host, record: Record, now: _Look) -> Record:
    """Return it as it would be made now: a delete or a take may have ended since it was chosen.

    Raises ``SnapshotExists`` when a good one is there, and ``RecordUnusable`` when it cannot be
    made any more, for it was deleted meanwhile or its volumes changed.
    """
    with suppress(UnknownSnapshot, RecordUnusable):
        host.catalog.get(record.domain_uuid, record.id)
        raise SnapshotExists(domain=record.domain, id=record.id)
    rebuilt, hopeless = now
    for each in rebuilt:
        if _place(each.record) == _place(record):
            return each.record
    why = next((lost.why for lost in hopeless if lost.ref == record.ref), "its volumes are gone")
    path = host.catalog.folder(record.domain_uuid, record.id) / RECORD_FILE
    raise RecordUnusable(path=str(path), why=f"it can no longer be rebuilt: {why}")


def _domain_name(host: Host, record: Record) -> str:
    """Return what the catalog is to call a domain: it may have been renamed since a record of it.

    What it says stays; where it says nothing, its newest record tells.
    """
    folder = host.catalog.folder(record.domain_uuid, record.id).parent
    with durable.failing_untouched(folder):
        says_it = durable.is_there(folder / NAME_FILE)
    if says_it:
        return recordfolder.name_in(folder)
    records = host.catalog.records(record.domain_uuid)
    return max([record, *records], key=lambda each: each.place).domain
