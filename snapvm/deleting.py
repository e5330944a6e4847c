"""Deleting snapshots: all of them are checked before the first goes; each goes by itself.

A record becomes invisible, then its volumes go, then its image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from snapvm import identity, repair
from snapvm.attention import LeftBehind
from snapvm.catalog import Catalog
from snapvm.errors import DeleteInterrupted, DeleteStopped, Interrupted, SnapvmError
from snapvm.host import Host
from snapvm.interrupt import shielded
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.model import DomainUuid, Progress, Record
from snapvm.refusals import VolumeRefused


def delete(host: Host, records: Sequence[Record], progress: Progress) -> None:
    """Delete snapshots: each becomes invisible first, then its volumes and its image go.

    Raises ``VolumeRefused`` for a volume in use or needed by what stays, ``SnapshotReplaced``,
    ``UnknownSnapshot`` and ``Locked``, none of them touched; ``LeftBehind`` for one that is only
    half gone.  What fails only after others are gone is told by ``DeleteStopped``, and unless all
    of them are gone ``DeleteInterrupted`` is raised, none of them half gone.
    """
    deleted: list[str] = []
    try:
        if len(records) > 1:
            progress.phase("checking")
            _check_all(host, records)
        for record in records:
            with identity.locked(host.catalog, record) as uuids:
                repair.finish_all(host, uuids, record.domain)
                progress.phase(f"deleting {record.ref}")
                known = host.catalog.again(record)
                report = host.lvm.report()
                _check_unneeded(known, host.catalog, records, report)
                with shielded():
                    _delete(host, known, report)
                    deleted.append(record.ref)
    except Interrupted as error:
        untouched = tuple(record.ref for record in records[len(deleted) :])
        if untouched:
            raise DeleteInterrupted(error.signal, tuple(deleted), untouched) from error
    except SnapvmError as error:
        if not deleted:
            raise
        untouched = _untouched(host, records[len(deleted) :])
        raise DeleteStopped(error, tuple(deleted), untouched) from error


def _check_all(host: Host, records: Sequence[Record]) -> None:
    """Raise what would keep any of them from being deleted now.

    Each domain is looked at under its own lock, and what is pending of it is finished; several
    locks at once might wait for another snapvm's.
    """
    by_domain: dict[tuple[DomainUuid, str], list[Record]] = {}
    for record in records:
        by_domain.setdefault((record.domain_uuid, record.domain), []).append(record)
    for (_, name), its in by_domain.items():
        with identity.locked(host.catalog, its[0]) as uuids:
            repair.finish_all(host, uuids, name)
            report = host.lvm.report()
            for record in its:
                known = host.catalog.again(record)
                _check_unneeded(known, host.catalog, records, report)


def _check_unneeded(
    record: Record, catalog: Catalog, doomed: Iterable[Record], report: Report
) -> None:
    """Raise ``VolumeRefused`` when something uses a volume of a record, or is built upon it.

    Records of its domain that are ``doomed`` go together with it, and need nothing.
    """
    going = {other.id for other in doomed if other.domain_uuid == record.domain_uuid}
    known = catalog.records(record.domain_uuid)
    staying = (other for other in known if other.id not in going)
    needed_by = {disk.snapshot.uuid: other for other in staying for disk in other.disks}
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
                volume=name, why=f"{other} needs it too", remedy=f"snapvm delete {other}"
            )
        if (volume.vg, volume.name) == (disk.volume.vg, disk.volume.lv):
            raise VolumeRefused(
                volume=name,
                why=f"it belongs to {record.ref} and has the name of disk {disk.target}",
                remedy="when it is not the disk, give it another name with lvrename",
            )
        for above in report.snapshots_of(volume):
            raise VolumeRefused(
                volume=name,
                why=f"its own snapshot {above.ref} needs it",
                remedy=f"when nothing needs that one: lvremove {above.ref}",
            )
        _require_no_overlay(volume, report)


def _require_no_overlay(volume: LogicalVolume, report: Report) -> None:
    """Raise ``VolumeRefused`` for what thin volumes of another pool read from.

    LVM would remove all of them with it, for it is told yes to everything (lvmthin(7)).
    """
    if not volume.is_external_origin:
        return
    above = next(iter(report.overlays_of(volume)), None)
    name = "another volume" if above is None else str(above.ref)
    raise VolumeRefused(
        volume=str(volume.ref),
        why=f"it is the external origin of {name}, which would go with it",
        remedy=f"when nothing needs that one: lvremove {above.ref}" if above else "",
    )


def _untouched(host: Host, left: Sequence[Record]) -> tuple[str, ...]:
    """Return what is left of the chosen ones; the first of them may be half gone, or another's."""
    at, *others = left
    is_whole = host.catalog.has_record(at.domain_uuid, at.id, at.set)
    return tuple(record.ref for record in ([at] if is_whole else []) + others)


def _delete(host: Host, record: Record, report: Report) -> None:
    gone = host.catalog.hide(record)
    try:
        host.lvm.remove([disk.snapshot for disk in record.disks], report)
        host.catalog.forget(gone)
    except SnapvmError as error:
        left = f"volumes and files of {record.ref}"
        raise LeftBehind(leftovers=(left,), why=str(error)) from error
