"""Deleting snapshots: all of a group are checked before the first goes; each goes by itself.

A record becomes invisible, then its volumes go, then its image.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain

from snapvm import bydomain, identity, repair
from snapvm.attention import LeftBehind
from snapvm.errors import (
    ExitStatus,
    Interrupted,
    SnapvmError,
    UnknownSnapshot,
    noting,
    typed,
)
from snapvm.failures import DeleteInterrupted, DeleteStopped
from snapvm.host import Host
from snapvm.interrupt import nothing_is_left, shielded
from snapvm.lvm import argv, away, preflight
from snapvm.lvm.away import Absence
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.model import DiskRecord, DomainUuid, LvRef, LvUuid, Progress, Record, SnapshotId
from snapvm.refusals import GroupAway, RecordUnusable, SnapshotReplaced, VolumeRefused

_NAMED = 5
"""Of many snapshots, in what is to be typed."""

log = logging.getLogger(__name__)

_Seen = dict[tuple[DomainUuid, SnapshotId], Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What deleting puts up with."""

    forgiven: tuple[type[SnapvmError], ...] = ()
    """What keeps none from being deleted, and is not told."""
    spared: tuple[type[SnapvmError], ...] = ()
    """What keeps one from being deleted, and none of the others."""
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
    _delete_groups(host, [records], progress, terms)


def prune(
    host: Host,
    groups: Sequence[Sequence[Record]],
    progress: Progress,
    *,
    require_meant: Callable[[Record], None] = lambda _record: None,
) -> tuple[Record, ...]:
    """Delete several groups of snapshots as ``delete`` does one, whatever becomes of the others.

    Nobody named one of them, so one that is gone by now, as when two are at it, is no failure.
    What has volumes where a volume group is away, or that somebody uses or has built upon, is left
    alone and keeps nothing else: a backup may read one of them every night.
    ``require_meant`` raises, under the lock, where one may be to be kept by now.
    Returns those it deleted.  Otherwise raises as ``delete`` does: the worst of what failed, and
    logs the rest.  An interruption ends it, and is what is raised unless something has to be
    repaired.
    """
    report = host.lvm.explained(host.lvm.report(), _volumes(chain.from_iterable(groups)))
    absent: dict[Absence, list[Record]] = {}
    refused: list[SnapvmError] = []
    skipped: list[Record] = []
    for record in chain.from_iterable(groups):
        absence = _absence(record, report)
        if absence is not None:
            absent.setdefault(absence, []).append(record)
            skipped.append(record)
            continue
        try:
            _check_unneeded(record, {}, report)
        except VolumeRefused as error:
            refused.append(error)
            skipped.append(record)
    terms = _Terms(
        forgiven=(UnknownSnapshot, SnapshotReplaced),
        spared=(VolumeRefused, GroupAway),
        refused=(*(_refusal(absence, records) for absence, records in absent.items()), *refused),
        skipped=tuple(skipped),
        require_meant=require_meant,
    )
    reachable = [_not_in(skipped, records) for records in groups]
    return _delete_groups(host, reachable, progress, terms)


def _absence(record: Record, report: Report) -> Absence | None:
    """Return why its volumes are out of reach; what is unclear is for the check to tell."""
    try:
        return away.of_record(record, report)
    except VolumeRefused:
        return None


def _refusal(absence: Absence, records: Sequence[Record]) -> GroupAway:
    refs = _refs(records)
    forget = typed("delete --forget-missing", *refs[:_NAMED])
    return absence.refusal(refs, forget=forget)


def _volumes(records: Iterable[Record]) -> Iterator[LvRef]:
    return (disk.snapshot for record in records for disk in record.disks)


def _delete_groups(
    host: Host,
    groups: Sequence[Sequence[Record]],
    progress: Progress,
    terms: _Terms,
) -> tuple[Record, ...]:
    deleted: list[Record] = []
    failures: list[SnapvmError] = [*terms.refused]
    signal = ""
    try:
        for records in groups:
            with noting(failures):
                _delete_all(host, records, progress, terms, deleted, failures)
    except Interrupted as error:
        signal = error.signal
    left = _not_in(deleted, [*chain.from_iterable(groups), *terms.skipped])
    is_mendable = all(error.exit_status <= ExitStatus.FAILED for error in failures)
    if signal and left and is_mendable:
        bydomain.log_all(failures)
        raise DeleteInterrupted(signal, _refs(deleted), _untouched(host, left))
    if not failures:
        nothing_is_left()
        return tuple(deleted)
    worst = bydomain.worst(failures)
    if not deleted and not signal:
        raise worst
    raise DeleteStopped(worst, _refs(deleted), _untouched(host, left), signal) from worst


def _delete_all(
    host: Host,
    records: Sequence[Record],
    progress: Progress,
    terms: _Terms,
    deleted: list[Record],
    failures: list[SnapvmError],
) -> None:
    """Delete records; put each that is gone into ``deleted``, why one stays into ``failures``."""
    going = list(records)
    seen: _Seen = {}
    if len(records) > 1:
        _check_all(host, records, progress, terms, seen)
    for record in records:
        locked = identity.locked(host.catalog, record, progress)
        with suppress(*terms.forgiven), _sparing(record, going, terms, failures), locked as uuids:
            repair.finish_all(host, uuids, record.domain)
            terms.require_meant(record)
            progress.phase(f"deleting {record.ref}")
            known = host.catalog.again(record)
            report = host.lvm.explained(host.lvm.report(), _volumes([known]))
            if not terms.forget_missing:
                _check_reach(known, report)
            others = _records(host, record.domain_uuid, seen)
            _check_unneeded(known, _needed_by(others, going), report)
            with shielded():
                _delete(host, known, report)
                deleted.append(record)


@contextmanager
def _sparing(
    record: Record, going: list[Record], terms: _Terms, failures: list[SnapvmError]
) -> Iterator[None]:
    """Leave a record alone that may not be deleted now: it is not ``going`` any more."""
    try:
        yield
    except terms.spared as refusal:
        failures.append(refusal)
        going.remove(record)


def _not_in(deleted: Sequence[Record], everything: Iterable[Record]) -> list[Record]:
    gone = {(record.domain_uuid, record.id) for record in deleted}
    return [record for record in everything if (record.domain_uuid, record.id) not in gone]


def _untouched(host: Host, left: Sequence[Record]) -> tuple[str, ...]:
    """Tell which of those that are left are whole: one may be half gone, or another's by now."""
    has = host.catalog.has_record
    return _refs([record for record in left if has(record.domain_uuid, record.id, record.set)])


def _refs(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(record.ref for record in records)


def _check_all(
    host: Host, records: Sequence[Record], progress: Progress, terms: _Terms, seen: _Seen
) -> None:
    """Raise what would keep any of them from being deleted now.

    Each domain is looked at under its own lock, and what is pending of it is finished; several
    locks at once might wait for another snapvm's.
    """
    by_domain: dict[tuple[DomainUuid, str], list[Record]] = {}
    for record in records:
        by_domain.setdefault((record.domain_uuid, record.domain), []).append(record)
    for (_, name), its in by_domain.items():
        with identity.locked(host.catalog, its[0], progress) as uuids:
            progress.phase("checking")
            repair.finish_all(host, uuids, name)
            report = host.lvm.explained(host.lvm.report(), _volumes(its))
            needed_by = _needed_by(_records(host, its[0].domain_uuid, seen), records)
            for record in its:
                with suppress(*terms.forgiven, *terms.spared):  # these are met again
                    terms.require_meant(record)
                    known = host.catalog.again(record)
                    if not terms.forget_missing:
                        _check_reach(known, report)
                    _check_unneeded(known, needed_by, report)


def _check_reach(record: Record, report: Report) -> None:
    """Raise ``GroupAway`` when volumes of a record may exist that cannot be removed now."""
    absence = away.of_record(record, report)
    if absence is not None:
        raise _refusal(absence, [record])


def _needed_by(known: Iterable[Record], doomed: Iterable[Record]) -> dict[LvUuid, Record]:
    """Return the snapshots that are needed, and by which of the records ``known`` of a domain.

    Those that are ``doomed`` go together, and need nothing.
    """
    going = {(other.domain_uuid, other.id) for other in doomed}
    staying = (other for other in known if (other.domain_uuid, other.id) not in going)
    return {disk.snapshot.uuid: other for other in staying for disk in other.disks}


def _check_unneeded(record: Record, needed_by: Mapping[LvUuid, Record], report: Report) -> None:
    """Raise ``VolumeRefused`` when something uses a volume of a record, or is built upon it."""
    for disk in record.disks:
        volume = report.lv_of(disk.snapshot)
        if volume is None:
            continue
        name = str(volume.ref)
        if volume.is_open:
            raise VolumeRefused(
                volume=name,
                why=f"it belongs to {record.ref} and is in use",
                remedy=f"look for its user with `lsblk {volume.ref.path}`",
            )
        if volume.uuid in needed_by:
            other = needed_by[volume.uuid].ref
            raise VolumeRefused(
                volume=name,
                why=f"{other} needs it too",
                remedy=typed("delete", other),
            )
        if volume.name == disk.volume.lv:
            raise VolumeRefused(
                volume=name,
                why=f"it belongs to {record.ref} and has the name of disk {disk.target}",
                remedy="when it is not the disk, give it another name with lvrename",
            )
        _require_ours(record, disk, volume)
        preflight.check_removable(report, volume, record.ref)
        preflight.check_nothing_above(volume, report)


def _require_ours(record: Record, disk: DiskRecord, volume: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` for a snapshot of which somebody has made a disk by hand.

    As long as it has our tags; without them it is left as it is.
    """
    is_renamed = volume.name != disk.snapshot.lv
    if is_renamed and volume.is_writable and argv.TAG_OURS in volume.tags:
        untagging = argv.untagging(volume.ref, volume.tags)
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"it was {disk.snapshot.lv} of {record.ref}, and somebody gave it this name and "
            "made it writable",
            remedy=f"when it is to stay, take snapvm's tags off it: {untagging}; when it is not: "
            f"lvchange --permission r {volume.ref}",
        )


def _records(host: Host, uuid: DomainUuid, seen: _Seen) -> list[Record]:
    """Return the records of a domain that can be read, each read once and put into ``seen``.

    One of a thousand cannot read all the others again; none is ever changed, and one that takes
    the id of another later needs no volume of before.
    """
    listed = [(uuid, id_) for id_ in host.catalog.ids(uuid)]
    for key in listed:
        if key not in seen:
            with suppress(UnknownSnapshot, RecordUnusable):
                seen[key] = host.catalog.get(*key)
    return [seen[key] for key in listed if key in seen]


def _delete(host: Host, record: Record, report: Report) -> None:
    """Delete a record, its image, and what can be removed of its volumes now."""
    absence = away.of_record(record, report)
    if absence is not None:
        what = f"volume group {absence.group} {absence.why}"
        log.warning("%s: what %s has there was left behind", what, record.ref)
    gone = host.catalog.hide(record)
    try:
        host.lvm.remove(away.within_reach(record, report), report)
        host.catalog.forget(gone)
    except SnapvmError as error:
        left = f"volumes and files of {record.ref}"
        raise LeftBehind(leftovers=(left,), why=str(error)) from error
