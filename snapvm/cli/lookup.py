"""Finding records by what the user typed, from the catalog alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from snapvm import naming, recordfile
from snapvm.catalog import Catalog
from snapvm.cli.session import Session
from snapvm.errors import NothingToUndo, UnknownSnapshot
from snapvm.model import DomainUuid, Record, RecordKind, SnapshotId


def catalog_of(session: Session) -> Catalog:
    """Return the catalog the settings name."""
    settings = session.settings()
    return Catalog(settings.state_dir, settings.run_dir)


def as_values(record: Record) -> dict[str, Any]:
    """Return a record as JSON values: what its file holds, and how users refer to it."""
    return {"ref": record.ref, **recordfile.as_dict(record)}


def find(catalog: Catalog, reference: str) -> Record:
    """Return the record that ``dom@id`` means: its id, a unique prefix, or ``latest``.

    Raises ``BadName``, ``UnknownSnapshot``, ``AmbiguousSnapshot`` and ``RecordUnusable``.
    """
    domain, wanted = naming.split_reference(reference)
    uuids = catalog.uuids_of(domain)
    if wanted.casefold() == naming.LATEST:
        # An undo record does not count: ``rollback dom@latest`` typed twice means the same twice.
        taken = (record for record in _records(catalog, uuids) if not _is_undo(record))
        newest = _newest(taken)
        if newest is None:
            raise UnknownSnapshot(domain=domain, id=wanted)
        return newest
    # A whole id needs no look at the others, of which there may be ten thousand.
    exact = [record for uuid in uuids for record in _of_id(catalog, uuid, SnapshotId(wanted))]
    if exact:
        return max(exact, key=_age)
    ids = {id_: uuid for uuid in uuids for id_ in catalog.ids(uuid)}
    chosen = naming.choose(domain, wanted, tuple(ids))
    return catalog.get(ids[chosen], chosen)


def newest_undo(catalog: Catalog, domain: str) -> Record:
    """Return what was current before the domain's last rollback; raise ``NothingToUndo``."""
    records = _records(catalog, catalog.uuids_of(domain))
    newest = _newest(record for record in records if _is_undo(record))
    if newest is None:
        raise NothingToUndo(domain=domain)
    return newest


def _of_id(catalog: Catalog, uuid: DomainUuid, id_: SnapshotId) -> Iterator[Record]:
    with suppress(UnknownSnapshot):
        yield catalog.get(uuid, id_)


def _records(catalog: Catalog, uuids: Iterable[DomainUuid]) -> Iterator[Record]:
    for uuid in uuids:
        yield from (entry for entry in catalog.entries(uuid) if isinstance(entry, Record))


def _is_undo(record: Record) -> bool:
    return record.kind is RecordKind.UNDO


def _age(record: Record) -> tuple[str, str]:
    return record.created, record.id


def _newest(records: Iterable[Record]) -> Record | None:
    return max(records, key=_age, default=None)
