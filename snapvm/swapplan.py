"""Which volume replaces which in a rollback: decided disk by disk, from one report of LVM's."""

from __future__ import annotations

from snapvm import cowsize, naming, occupancy, planning
from snapvm.host import Host
from snapvm.lvm import away, health, newname
from snapvm.lvm.argv import TAG_OURS, is_ours, set_tag
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.preflight import check_replaceable, check_room, check_siblings
from snapvm.lvm.report import Report
from snapvm.model import DiskRecord, Record, SnapshotId, VolumeKind
from snapvm.occupancy import Occupant
from snapvm.planning import SwapDisk
from snapvm.refusals import RecordUnusable, VolumeRefused
from snapvm.settings import Settings


def plan_swaps(
    record: Record,
    occupant: Occupant,
    report: Report,
    set_: str,
    undo_id: SnapshotId,
    host: Host,
) -> tuple[SwapDisk, ...]:
    """Decide, for every disk of a record, what replaces what.

    Raises ``RecordUnusable`` when a snapshot is gone or not the one that was taken,
    ``VolumeRefused`` for a disk that is missing or used by something else, and ``NoSpace``.
    """
    settings = host.settings
    swaps = []
    for number, disk in enumerate(record.disks):
        snapshot = _usable_snapshot(record, disk, report)
        current = _current(record, disk, snapshot, report)
        check_replaceable(report, current)
        occupancy.require_bare(current.ref, host.lvm.holders_of(current.ref, current.device))
        occupancy.require_replaceable(record, disk, current, occupant)
        _check_kind(record, disk, snapshot, current)
        if snapshot.kind is VolumeKind.THICK:
            _check_thick(record, disk, snapshot, current, report)
        clone_name = naming.clone_lv(current.name, set_, current.vg, number)
        undo_name = naming.snapshot_lv(current.name, undo_id, set_, current.vg, number)
        for name in (clone_name, undo_name):
            newname.require_free(report, current.vg, name, "try again: the name is another then")
        swaps.append(
            SwapDisk(
                target=disk.target,
                snapshot=snapshot.ref,
                current=current.ref,
                user_tags=tuple(sorted(tag for tag in current.tags if not is_ours(tag))),
                read_ahead=current.read_ahead,
                not_at_boot=current.not_at_boot,
                is_skipped=current.is_skipped,
                size_bytes=current.disk_bytes,
                kind=snapshot.kind,
                clone_name=clone_name,
                undo_name=undo_name,
                store_bytes=_store_bytes(report, current, snapshot, settings),
                chunk_bytes=planning.chunk_bytes(report, current, settings),
            )
        )
    made = ((swap.current.vg, (swap.clone_name, swap.undo_name)) for swap in swaps)
    newname.require_distinct((vg, name) for vg, names in made for name in names)
    needed = planning.per_group((swap.current.vg, swap.store_bytes) for swap in swaps)
    check_room(report, needed, settings.group_limit_percent)
    return tuple(swaps)


def _usable_snapshot(record: Record, disk: DiskRecord, report: Report) -> LogicalVolume:
    """Return the snapshot of a disk; ``check`` finds the same troubles with it."""
    absence = away.of_disk(disk, report)
    if absence is not None:
        raise absence.refusal([record.ref])
    snapshot = report.lv_of(disk.snapshot)
    trouble = health.trouble(disk, snapshot)
    if snapshot is None or trouble:
        named = disk.snapshot if snapshot is None else snapshot.ref
        why = f"its snapshot {named} of {disk.target} {trouble}"
        raise RecordUnusable(path=record.ref, why=why)
    if not {TAG_OURS, set_tag(record.set)} <= snapshot.tags:
        why = f"{snapshot.ref} no longer has its tags"
        raise RecordUnusable(path=record.ref, why=why)
    if snapshot.is_thick_snapshot and not snapshot.is_known_whole:
        raise VolumeRefused(
            volume=str(snapshot.ref),
            why="it is not active, so LVM cannot say whether it is lost",
            remedy=f"lvchange -ay {snapshot.vg}/{snapshot.origin}",
        )
    return snapshot


def _current(
    record: Record, disk: DiskRecord, snapshot: LogicalVolume, report: Report
) -> LogicalVolume:
    """Return the volume that has the disk's name now, and that the rollback is to keep.

    In a group that was renamed it is looked for under the group's new name.  A record with memory
    is refused there, since its image names the disk by the old one.
    """
    group = occupancy.group_now(disk, snapshot)
    if group != disk.volume.vg and record.memory is not None:
        raise VolumeRefused(
            volume=str(snapshot.ref),
            why=f"its group was {disk.volume.vg}, by which the disk is named in the memory image",
            remedy=f"vgrename {snapshot.vg} {disk.volume.vg}",
        )
    current = report.lv_from_name(group, disk.volume.lv)
    if current is None:
        raise VolumeRefused(
            volume=str(disk.volume),
            why=f"there is no such volume, but it is disk {disk.target} of {record.ref}",
            remedy="give the disk its name back with lvrename" + _or_a_new_one(disk, snapshot),
        )
    return current


def _or_a_new_one(disk: DiskRecord, snapshot: LogicalVolume) -> str:
    """Say what else to do where the disk may have been removed, which its thin snapshot outlives.

    An empty one is kept in its place then, and takes no room.
    """
    if snapshot.kind is VolumeKind.THICK:
        return ""
    return (
        f"; if it was removed, create an empty one to be replaced: lvcreate --virtualsize "
        f"{disk.size_bytes}b --name {disk.volume.lv} --thinpool {snapshot.pool} {snapshot.vg}"
    )


def _check_kind(
    record: Record, disk: DiskRecord, snapshot: LogicalVolume, current: LogicalVolume
) -> None:
    """Require the present disk to be of the snapshot's kind, and in its group.

    What replaces the disk is made from the snapshot, and the present disk is kept as a snapshot is.
    """
    if snapshot.vg_uuid != current.vg_uuid:
        why = (
            f"{snapshot.ref} is not in the group of {current.ref}, which is disk {disk.target} now"
        )
        raise RecordUnusable(path=record.ref, why=why)
    if snapshot.kind is not current.kind:
        raise VolumeRefused(
            volume=str(current.ref),
            why=f"it is now {current.kind}, but the snapshot of disk {disk.target} in "
            f"{record.ref} is {snapshot.kind}",
            remedy="rename it, and give its name to a volume of the former kind",
        )


def _check_thick(
    record: Record,
    disk: DiskRecord,
    snapshot: LogicalVolume,
    current: LogicalVolume,
    report: Report,
) -> None:
    """Require a snapshot of this very volume: a thick disk is written over where it is."""
    if not snapshot.is_thick_snapshot or snapshot.origin != current.name:
        why = f"{snapshot.ref} is not a snapshot of {current.ref}, which is disk {disk.target} now"
        raise RecordUnusable(path=record.ref, why=why)
    if current.size_bytes < snapshot.disk_bytes:
        raise VolumeRefused(
            volume=str(current.ref),
            why=f"it has become smaller than it was in {record.ref}",
            # LVM extends one that has snapshots only then (lvm2, lv_manip.c, _lvresize_check).
            remedy=f"shut the domain off, and extend it while it is not active: lvchange -an "
            f"{current.ref}; lvextend -L {snapshot.disk_bytes}b {current.ref}; lvchange -ay "
            f"{current.ref}",
        )
    check_siblings(report, current, snapshot)


def _store_bytes(
    report: Report, current: LogicalVolume, snapshot: LogicalVolume, settings: Settings
) -> int:
    """Return how large what an undo snapshot keeps may become; 0 for a thin one.

    It first keeps all that is written back over, and then what the domain changes later.
    """
    if snapshot.kind is VolumeKind.THIN:
        return 0
    disk_bytes, extent_bytes = current.size_bytes, current.vg_extent_bytes
    chunk_bytes = planning.chunk_bytes(report, current, settings)
    whole = cowsize.store_bytes(disk_bytes, extent_bytes, cowsize.FULL, chunk_bytes)
    wanted = planning.store_bytes(report, current, settings)
    # With larger chunks than the snapshot's it copies a whole one for each that is written back.
    widened = max(1, chunk_bytes // (snapshot.chunk_bytes or chunk_bytes))
    return min(whole, wanted + -(-snapshot.size_bytes // extent_bytes) * extent_bytes * widened)
