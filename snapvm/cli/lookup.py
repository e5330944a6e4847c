"""Find the records that the user means by ``DOM`` or ``DOM@ID``, from the catalog alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from snapvm import naming, recordfile
from snapvm.catalog import Catalog
from snapvm.cli import output
from snapvm.cli.session import Session
from snapvm.errors import AmbiguousDomain, NothingToUndo, UnknownSnapshot
from snapvm.model import Record, RecordKind, SnapshotId, moment
from snapvm.recordfolder import Damaged, Work
from snapvm.refusals import MeansAnother, RecordUnusable
from snapvm.settings import Settings


def catalog_of(session: Session) -> Catalog:
    """Return the catalog the settings name."""
    settings = session.settings()
    return Catalog(settings.state_dir, settings.run_dir)


def is_mistaken(settings: Settings) -> bool:
    """Tell whether the state folder is one that does not exist, though somebody chose it.

    Its name may be mistyped, or its disk not mounted; the usual one is made by the first `take`.
    """
    return settings.state_dir != Settings().state_dir and not os.path.exists(settings.state_dir)


def warn_if_mistaken(settings: Settings) -> None:
    """Warn of a state folder without which there is nothing to find, and which may be a mistake."""
    if is_mistaken(settings):
        output.warn(f"the state folder {settings.state_dir} does not exist")


def as_values(record: Record) -> dict[str, Any]:
    """Return a record as JSON values: its ``DOM@ID``, and all that its file holds."""
    return {"ref": record.ref, **recordfile.as_dict(record)}


def find(catalog: Catalog, reference: str, *, whole: bool = False) -> Record:
    """Return the record that ``dom@id`` means: its id, a unique prefix, or ``latest``.

    With ``whole`` a prefix is refused: a script may give the id of a snapshot that is gone or not
    made yet, and must not lose another one that happens to begin with it.
    ``dom`` is the name of the domain now or when the record was made, or its uuid.  Raises
    ``BadName``, ``UnknownSnapshot``, ``AmbiguousSnapshot``, ``AmbiguousDomain`` and
    ``RecordUnusable``.
    """
    domain, wanted = naming.split_reference(reference)
    if wanted.casefold() == naming.LATEST:
        # Undo records do not count, so that a second ``rollback dom@latest`` means the same record.
        newest = _newest_of_all(catalog, domain, wanted, are_undos=False)
        if newest is None:
            raise UnknownSnapshot(domain=domain, id=wanted)
        return newest
    # For a whole id no other record is read, of which there may be ten thousand.
    chosen = SnapshotId(wanted)
    exact = list(_of_id(catalog, domain, chosen))
    if not exact:
        chosen = naming.choose(domain, wanted, _ids(catalog, domain, wanted))
        exact = list(_of_id(catalog, domain, chosen))
    newest = _newest(domain, chosen, exact)
    if newest is None:
        raise UnknownSnapshot(domain=domain, id=chosen)
    if whole and newest.id != wanted:
        raise UnknownSnapshot(domain=domain, id=wanted, begins=newest.ref)
    return newest


def require_meant(catalog: Catalog, reference: str, record: Record) -> None:
    """Raise ``MeansAnother`` when a reference no longer means the record that was chosen by it.

    Whoever was waited for may have taken another ``latest``, or deleted that one.  Raises as
    ``find`` does.
    """
    now = find(catalog, reference)
    if (now.domain_uuid, now.id) != (record.domain_uuid, record.id):
        raise MeansAnother(reference=reference, meant=record.ref, means=now.ref)


def newest_undo(catalog: Catalog, domain: str) -> Record:
    """Return the record of what was current before the domain's last rollback.

    Raises ``NothingToUndo``, ``AmbiguousDomain`` and ``RecordUnusable``.
    """
    newest = _newest_of_all(catalog, domain, "", are_undos=True)
    if newest is None:
        raise NothingToUndo(domain=domain, is_pending=_is_rolled_back_now(catalog, domain))
    return newest


def _is_rolled_back_now(catalog: Catalog, domain: str) -> bool:
    uuids = [uuid for uuid, name in catalog.domains() if domain in (name, uuid)]
    pending = (left for uuid in uuids for left in catalog.leftovers(uuid))
    return any(left.work is Work.ROLLBACK for left in pending)


def entries(catalog: Catalog, domain: str | None) -> Iterator[tuple[str, Record | Damaged]]:
    """Yield the records of one domain, or of all when it is None, each with its domain's name now.

    These are all records of the domain that has the name or the uuid now, and the records of other
    domains that were made while they had the name.
    """
    for uuid, name in catalog.domains():
        if domain is None or domain in (name, uuid):
            yield from ((name, entry) for entry in catalog.entries(uuid))
        else:
            yield from ((name, record) for record in catalog.records_of(uuid, domain))


class _Fit(NamedTuple):
    """A record that may be meant, and the last known name of its domain."""

    record: Record
    known_as: str


def _of_id(catalog: Catalog, domain: str, id_: SnapshotId) -> Iterator[_Fit]:
    for uuid, name in catalog.domains():
        is_named_now = domain in (name, uuid)
        try:
            record = catalog.get(uuid, id_)
        except UnknownSnapshot:
            continue
        except RecordUnusable:
            if is_named_now:
                raise
            continue
        if is_named_now or record.domain == domain:
            yield _Fit(record, name)


def _newest_of_all(catalog: Catalog, domain: str, wanted: str, *, are_undos: bool) -> Record | None:
    """Return the newest record of the domain that has the name, or else of those that had it.

    Raises ``AmbiguousDomain``, and ``RecordUnusable`` when a damaged record may be newer: the user
    must not delete or go back to another snapshot than the one meant.
    """
    known = catalog.domains()
    own = [(uuid, name) for uuid, name in known if domain in (name, uuid)]
    fits: list[_Fit] = []
    damaged: list[Damaged] = []
    for uuid, name in own or known:
        # Where a domain once had the name, nothing says whether a damaged record is of that time.
        for entry in catalog.entries(uuid) if own else catalog.records_of(uuid, domain):
            if isinstance(entry, Damaged):
                damaged += [entry] if naming.is_undo(entry.id) is are_undos else []
            elif _is_undo(entry) is are_undos:
                fits.append(_Fit(entry, name))
    newest = _newest(domain, wanted, fits)
    for entry in damaged:
        if newest is None or _may_be_newer(entry, newest):
            raise entry.trouble()
    return newest


def _may_be_newer(damaged: Damaged, newest: Record) -> bool:
    """Tell whether a damaged record, of which only the id is known, may be newer than ``newest``.

    An id that is a time stamp tells the second in which the `take` began.  A chosen id tells
    nothing, nor does a stamp where the clock was set back.
    """
    began = naming.moment(damaged.id.removeprefix(naming.UNDO))
    created = moment(newest.created)
    if began is None or created is None or newest.order or created > datetime.now(UTC):
        return True
    return began >= created.replace(microsecond=0)


def _ids(catalog: Catalog, domain: str, prefix: str) -> tuple[SnapshotId, ...]:
    """Return the ids that a prefix may mean, each once; no other record is read."""
    ids: list[SnapshotId] = []
    for uuid, name in catalog.domains():
        is_named_now = domain in (name, uuid)
        for id_ in catalog.ids(uuid):
            if not id_.startswith(prefix):
                continue
            try:
                was_named_then = catalog.get(uuid, id_).domain == domain
            except UnknownSnapshot:
                continue
            except RecordUnusable:
                was_named_then = False
            if is_named_now or was_named_then:
                ids.append(id_)
    return tuple(dict.fromkeys(ids))


def _is_undo(record: Record) -> bool:
    return record.kind is RecordKind.UNDO


def _newest(domain: str, wanted: str, fits: Sequence[_Fit]) -> Record | None:
    """Return the newest record; raise ``AmbiguousDomain`` when they are of several domains.

    Domains are told apart by name: every `xl create` may give the same domain another uuid.
    """
    if len({fit.known_as for fit in fits}) > 1:
        known = {str(fit.record.domain_uuid): fit.known_as for fit in fits}
        raise AmbiguousDomain(
            domain=domain, id=wanted, uuids=tuple(known), known_as=tuple(known.values())
        )
    records = (fit.record for fit in fits)
    return max(records, key=lambda record: record.place, default=None)
