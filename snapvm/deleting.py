"""Deleting snapshots: all of a group are checked before the first goes; each goes by itself.

A record becomes invisible, then its volumes go, then its image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, starmap

from snapvm import deletable, identity, repair, severalfailures, turns
from snapvm.attention import LeftBehind
from snapvm.catalog import Catalog
from snapvm.errors import Interrupted, SnapvmError, UnknownSnapshot
from snapvm.failures import DeleteInterrupted, DeleteStopped
from snapvm.host import Host
from snapvm.interrupt import nothing_is_left, shielded
from snapvm.lvm import away
from snapvm.lvm.away import Absence
from snapvm.lvm.report import Report
from snapvm.model import DomainUuid, LvRef, LvUuid, Progress, Record, SnapshotId
from snapvm.refusals import GroupAway, RecordUnusable, SnapshotReplaced, VolumeRefused
from snapvm.severalfailures import noting

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What deleting puts up with: anything else that is raised ends the group it is raised in."""

    forgiven: tuple[type[SnapvmError], ...] = ()
    """The record that raises one of these is passed over in silence."""
    spared: tuple[type[SnapvmError], ...] = ()
    """The record that raises one of these stays, and the failure is told in the end."""
    forget_missing: bool = False
    """Volumes in a group that is away are left behind."""
    refused: tuple[SnapvmError, ...] = ()
    """Why some were left out beforehand."""
    skipped: tuple[Record, ...] = ()
    """The records that were left out beforehand."""
    require_meant: Callable[[Record], None] = lambda _record: None
    """See ``delete``."""


def delete(
    host: Host,
    records: Sequence[Record],
    progress: Progress,
    *,
    forget_missing: bool = False,
    require_meant: Callable[[Record], None] = lambda _record: None,
) -> None:
    """Delete snapshots: each becomes invisible first, then its volumes and its image go.

    Where a volume group is away its volumes are left behind with ``forget_missing``.
    ``require_meant`` raises, under the lock, where a word by which one was chosen means another by
    now.
    Raises ``VolumeRefused`` for a volume in use or needed by what stays, ``GroupAway``,
    ``SnapshotReplaced``, ``UnknownSnapshot`` and ``Locked``, none of them touched; ``LeftBehind``
    for one that is only half gone.  ``DeleteStopped`` says that one failed after others were gone,
    ``DeleteInterrupted`` that a signal came before all were gone; none is half gone then.
    """
    terms = _Terms(forget_missing=forget_missing, require_meant=require_meant)
    _Deletion(host=host, progress=progress, terms=terms).carry_out([records])


def prune(
    host: Host,
    groups: Sequence[Sequence[Record]],
    progress: Progress,
    *,
    require_meant: Callable[[Record], None] = lambda _record: None,
) -> tuple[Record, ...]:
    """Delete several groups of snapshots, each as ``delete`` does, and go on after one that fails.

    Nobody named these snapshots, so one that is gone by now is no failure: another `prune` may be
    at work.  One whose volumes are in a group that is away, or are in use or built upon, is left
    alone, and the others go all the same: a backup may read one of them every night.
    ``require_meant`` raises, under the lock, for one that has to be kept by now.
    Returns those it deleted.  Otherwise raises as ``delete`` does: the worst of what failed, after
    the rest is logged.  An interruption ends it, and is what is raised unless something has to be
    repaired.
    """
    report = host.lvm.explained(host.lvm.report(), _volumes(chain.from_iterable(groups)))
    absent: dict[Absence, list[Record]] = {}
    refused: list[SnapvmError] = []
    skipped: list[Record] = []
    for record in chain.from_iterable(groups):
        absence = deletable.absence(record, report)
        if absence is not None:
            absent.setdefault(absence, []).append(record)
            skipped.append(record)
            continue
        try:
            deletable.check_unneeded(record, {}, report)
        except VolumeRefused as error:
            refused.append(error)
            skipped.append(record)
    terms = _Terms(
        forgiven=(UnknownSnapshot, SnapshotReplaced),
        spared=(VolumeRefused, GroupAway),
        refused=(*starmap(deletable.refusal, absent.items()), *refused),
        skipped=tuple(skipped),
        require_meant=require_meant,
    )
    reachable = [_not_in(skipped, records) for records in groups]
    return _Deletion(host=host, progress=progress, terms=terms).carry_out(reachable)


def _volumes(records: Iterable[Record]) -> Iterator[LvRef]:
    return (disk.snapshot for record in records for disk in record.disks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deletion:
    """Deletes groups of records on its terms; knows how far it is, however it ends."""

    host: Host
    progress: Progress
    terms: _Terms
    deleted: list[Record] = field(default_factory=list)
    failures: list[SnapvmError] = field(default_factory=list)

    def carry_out(self, groups: Sequence[Sequence[Record]]) -> tuple[Record, ...]:
        """Delete the groups, one after the other; return the records that are gone."""
        failures = self.failures
        failures += self.terms.refused
        signal = ""
        try:
            for records in groups:
                with noting(failures):
                    self._delete_all(records)
        except Interrupted as error:
            signal = error.signal
        left = _not_in(self.deleted, [*chain.from_iterable(groups), *self.terms.skipped])
        is_work_left = any(error.exit_status.leaves_work for error in failures)
        if signal and left and not is_work_left:
            severalfailures.log_all(failures)
            raise DeleteInterrupted(signal, _refs(self.deleted), self._untouched(left))
        if not failures:
            nothing_is_left()
            return tuple(self.deleted)
        worst = severalfailures.worst(failures)
        if not self.deleted and not signal:
            raise worst
        gone, untouched = _refs(self.deleted), self._untouched(left)
        raise DeleteStopped(worst, gone, untouched, signal) from worst

    def _delete_all(self, records: Sequence[Record]) -> None:
        host, known = self.host, _Known(self.host.catalog)
        going = list(records)
        if len(records) > 1:
            self._check_all(records, known)
        for record in records:
            locked = identity.locked(host.catalog, record, self.progress)
            with suppress(*self.terms.forgiven), self._sparing(record, going), locked as uuids:
                repair.finish_all(host, uuids, record.domain)
                self.terms.require_meant(record)
                self.progress.phase(f"deleting {record.ref}")
                present = host.catalog.again(record)
                groups = [volume.vg for volume in _volumes([present])]
                with turns.taken(host.settings.run_dir, groups):
                    report = host.lvm.explained(host.lvm.report(), _volumes([present]))
                    its = known.of(record.domain_uuid)
                    self._check(present, deletable.who_needs(its, going), report)
                    with shielded():
                        _delete(host, present, report)
                        self.deleted.append(record)

    @contextmanager
    def _sparing(self, record: Record, going: list[Record]) -> Iterator[None]:
        """Leave a record alone that may not be deleted now: it is not ``going`` any more."""
        try:
            yield
        except self.terms.spared as refusal:
            self.failures.append(refusal)
            going.remove(record)

    def _check_all(self, records: Sequence[Record], known: _Known) -> None:
        """Raise what would keep any of them from being deleted now.

        Each domain is looked at under its own lock, and what is pending of it is finished; several
        locks at once might wait for another snapvm's.
        """
        host = self.host
        by_domain: dict[tuple[DomainUuid, str], list[Record]] = {}
        for record in records:
            by_domain.setdefault((record.domain_uuid, record.domain), []).append(record)
        for (uuid, name), its in by_domain.items():
            with identity.locked(host.catalog, its[0], self.progress) as uuids:
                self.progress.phase("checking")
                repair.finish_all(host, uuids, name)
                report = host.lvm.explained(host.lvm.report(), _volumes(its))
                needed_by = deletable.who_needs(known.of(uuid), records)
                for record in its:
                    with suppress(*self.terms.forgiven, *self.terms.spared):  # met again later
                        self.terms.require_meant(record)
                        self._check(host.catalog.again(record), needed_by, report)

    def _check(self, record: Record, needed_by: Mapping[LvUuid, Record], report: Report) -> None:
        """Raise what keeps a record from being deleted now."""
        if not self.terms.forget_missing:
            deletable.check_reach(record, report)
        deletable.check_unneeded(record, needed_by, report)

    def _untouched(self, left: Sequence[Record]) -> tuple[str, ...]:
        """Tell which of those that are left are whole: one may be half gone, or be another's."""
        has = self.host.catalog.has_record
        return _refs([record for record in left if has(record.domain_uuid, record.id, record.set)])


class _Known:
    """The records of domains, each of which is read once, not once for each that is deleted.

    What was read stays right: a record is never changed, and one that gets the id of a deleted one
    needs none of the volumes that there were before it.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._read: dict[tuple[DomainUuid, SnapshotId], Record] = {}

    def of(self, uuid: DomainUuid) -> list[Record]:
        """Return the records that a domain has now and that can be read."""
        listed = [(uuid, id_) for id_ in self._catalog.ids(uuid)]
        for key in listed:
            if key not in self._read:
                with suppress(UnknownSnapshot, RecordUnusable):
                    self._read[key] = self._catalog.get(*key)
        return [self._read[key] for key in listed if key in self._read]


def _not_in(deleted: Sequence[Record], everything: Iterable[Record]) -> list[Record]:
    gone = {(record.domain_uuid, record.id) for record in deleted}
    return [record for record in everything if (record.domain_uuid, record.id) not in gone]


def _refs(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(record.ref for record in records)


def _delete(host: Host, record: Record, report: Report) -> None:
    """Delete a record, its image, and what can be removed of its volumes now."""
    absence = away.of_record(record, report)
    if absence is not None:
        what = f"volume group {absence.group} {absence.why}"
        log.warning("%s: the volumes of %s in it are left behind", what, record.ref)
    gone = host.catalog.hide(record)
    try:
        host.lvm.remove(away.within_reach(record, report), report)
        host.catalog.forget(gone)
    except SnapvmError as error:
        left = f"volumes and files of {record.ref}"
        raise LeftBehind(leftovers=(left,), why=str(error)) from error
