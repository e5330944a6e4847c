"""Finding records by what the user typed, from the catalog alone."""

from __future__ import annotations

from typing import Any

from snapvm import naming, recordfile
from snapvm.catalog import Catalog
from snapvm.cli.session import Session
from snapvm.errors import UnknownSnapshot
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
    uuid = catalog.uuid_of(domain)
    if uuid is None:
        raise UnknownSnapshot(domain=domain, id=wanted)
    if wanted.casefold() == naming.LATEST:
        return _latest(catalog, uuid, domain)
    try:
        # A whole id needs no look at the others, of which there may be ten thousand.
        return catalog.get(uuid, SnapshotId(wanted))
    except UnknownSnapshot:
        return catalog.get(uuid, naming.choose(domain, wanted, catalog.ids(uuid)))


def _latest(catalog: Catalog, uuid: DomainUuid, domain: str) -> Record:
    """Return the newest record that `take` made.

    An undo record does not count: ``rollback dom@latest`` typed twice must mean the same twice.
    """
    records = (entry for entry in catalog.entries(uuid) if isinstance(entry, Record))
    taken = (record for record in records if record.kind is not RecordKind.UNDO)
    newest = max(taken, key=lambda record: (record.created, record.id), default=None)
    if newest is None:
        raise UnknownSnapshot(domain=domain, id=naming.LATEST)
    return newest
