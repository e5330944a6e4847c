"""Finding records by what the user typed, from the catalog alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from snapvm import naming, recordfile
from snapvm.catalog import Catalog
from snapvm.cli.session import Session
from snapvm.cli.words import moment
from snapvm.errors import AmbiguousDomain, NothingToUndo, UnknownSnapshot
from snapvm.model import Record, RecordKind, SnapshotId
from snapvm.recordfolder import Damaged
from snapvm.refusals import RecordUnusable


def catalog_of(session: Session) -> Catalog:
    """Return the catalog the settings name."""
    settings = session.settings()
    return Catalog(settings.state_dir, settings.run_dir)


def as_values(record: Record) -> dict[str, Any]:
    """Return a record as JSON values: what its file holds, and how users refer to it."""
    return {"ref": record.ref, **recordfile.as_dict(record)}


def find(catalog: Catalog, reference: str, *, whole: bool = False) -> Record:
    """Return the record that ``dom@id`` means: its id, a unique prefix, or ``latest``.

    With ``whole`` a prefix will not do: where nobody is asked, as in a script, it may have been
    the id of one that is gone, or not there yet, and another would be lost.
    ``dom`` is the name of the domain now or when the record was made, or its uuid.  Raises
    ``BadName``, ``UnknownSnapshot``, ``AmbiguousSnapshot``, ``AmbiguousDomain`` and
    ``RecordUnusable``.
    """
    domain, wanted = naming.split_reference(reference)
    if wanted.casefold() == naming.LATEST:
        # An undo record does not count: ``rollback dom@latest`` typed twice means the same twice.
        newest = _newest_of_all(catalog, domain, wanted, are_undos=False)
        if newest is None:
            raise UnknownSnapshot(domain=domain, id=wanted)
        return newest
    # A whole id needs no look at the others, of which there may be ten thousand.
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


def newest_undo(catalog: Catalog, domain: str) -> Record:
    """Return what was current before the domain's last rollback.

    Raises ``NothingToUndo``, ``AmbiguousDomain`` and ``RecordUnusable``.
    """
    newest = _newest_of_all(catalog, domain, "", are_undos=True)
    if newest is None:
        raise NothingToUndo(domain=domain)
    return newest


def entries(catalog: Catalog, domain: str | None) -> Iterator[tuple[str, Record | Damaged]]:
    """Yield what is kept of one domain, or of all when it is None, and what each is called now.

    That is all of the domain which has the name or the uuid, and the records of those that had it.
    """
    for uuid, name in catalog.domains():
        if domain is None or domain in (name, uuid):
            yield from ((name, entry) for entry in catalog.entries(uuid))
        else:
            yield from ((name, record) for record in catalog.records_of(uuid, domain))


class _Fit(NamedTuple):
    """A record that may be meant, and what its domain was called when last seen."""

    record: Record
    known_as: str


def _of_id(catalog: Catalog, domain: str, id_: SnapshotId) -> Iterator[_Fit]:
    for uuid, name in catalog.domains():
        is_its = domain in (name, uuid)
        try:
            record = catalog.get(uuid, id_)
        except UnknownSnapshot:
            continue
        except RecordUnusable:
            if is_its:
                raise
            continue
        if is_its or record.domain == domain:
            yield _Fit(record, name)


def _newest_of_all(catalog: Catalog, domain: str, wanted: str, *, are_undos: bool) -> Record | None:
    """Return the newest record of who has the name; when nobody has it, of those who had it.

    Raises ``AmbiguousDomain``, and ``RecordUnusable`` when one that cannot be read may be newer:
    what is deleted or gone back to must not be another one than the user means.
    """
    known = catalog.domains()
    own = [(uuid, name) for uuid, name in known if domain in (name, uuid)]
    fits: list[_Fit] = []
    damaged: list[Damaged] = []
    for uuid, name in own or known:
        # Of a domain that had the name nothing says whether a damaged one was this one's.
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
    """Tell whether a record may be the newer one of which only the id is known.

    A stamp is of the second in which its `take` began; a name says nothing, and nor does a stamp
    where the clock was set back.
    """
    began = naming.moment(damaged.id.removeprefix(naming.UNDO))
    created = moment(newest.created)
    if began is None or created is None or newest.order or created > datetime.now(UTC):
        return True
    return began >= created.replace(microsecond=0)


def _ids(catalog: Catalog, domain: str, prefix: str) -> tuple[SnapshotId, ...]:
    """Return the ids that a prefix may mean, each once; what begins otherwise is not read."""
    ids: list[SnapshotId] = []
    for uuid, name in catalog.domains():
        is_its = domain in (name, uuid)
        for id_ in catalog.ids(uuid):
            if not id_.startswith(prefix):
                continue
            try:
                was_its = catalog.get(uuid, id_).domain == domain
            except UnknownSnapshot:
                continue
            except RecordUnusable:
                was_its = False
            if is_its or was_its:
                ids.append(id_)
    return tuple(dict.fromkeys(ids))


def _is_undo(record: Record) -> bool:
    return record.kind is RecordKind.UNDO


def _newest(domain: str, wanted: str, fits: Sequence[_Fit]) -> Record | None:
    """Return the newest of one domain; raise ``AmbiguousDomain`` when they are of several.

    One of xl's has another uuid with every `xl create`, and its name is what it is known by.
    """
    if len({fit.known_as for fit in fits}) > 1:
        known = {str(fit.record.domain_uuid): fit.known_as for fit in fits}
        raise AmbiguousDomain(
            domain=domain, id=wanted, uuids=tuple(known), known_as=tuple(known.values())
        )
    records = (fit.record for fit in fits)
    return max(records, key=lambda record: record.place, default=None)
