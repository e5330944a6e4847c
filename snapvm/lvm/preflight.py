"""May a volume be snapshotted, and its group and pool bear it?  Questions about one report."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from snapvm import cowsize
from snapvm.lvm import away, holders, newname, thinpool
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import VolumeKind
from snapvm.refusals import NoSpace, VolumeRefused

log = logging.getLogger(__name__)

_MEANWHILE = 1.05
"""The domain goes on writing between this question and the moment it is ended."""
_FULL_SOON_PERCENT = 80.0
"""What dmeventd warns at too (lvm2, daemons/dmeventd/plugins/snapshot)."""
_DISK_METADATA_BYTES = 8 << 10
"""For each disk, in its group's own metadata: a volume of ours is 600 bytes to 1 KiB of text there,
and a rollback makes two of a disk at times.  The usual 1 MiB is full with some 800 of them."""
_FEW_METADATA_BYTES = 64 << 10
"""As much as a night of takes on a busy host may need."""
_UNTIL_ENDED = "wait until that has ended (`lvs -a {}` tells)"
_PUBLIC = frozenset({"public"})
_POOLS = frozenset({"pool"})
_UNSUITED_LAYOUTS = {
    "cache": ("it has a cache (dm-cache)", "remove the cache: lvconvert --splitcache {}"),
    "writecache": (
        "it has a cache (dm-writecache)",
        "remove the cache: lvconvert --splitcache {}",
    ),
    "mirror": (
        "it is mirrored by dm-mirror, whose snapshots can deadlock when a device fails (LVM says)",
        "make it a raid1: lvconvert --type raid1 {}",
    ),
    "vdo": ("it is in a VDO pool", "move the disk to a thin pool, or to a volume without VDO"),
}
"""Layers whose snapshots are not to be trusted, or that nobody has tried with snapvm, and what the
owner of the disk can do."""


def check_volumes(
    report: Report,
    volumes: Iterable[LogicalVolume],
    *,
    sources: Iterable[LogicalVolume] | None = None,
    data_limit_percent: float,
    metadata_limit_percent: float,
    extend_threshold_percent: Callable[[str], float],
) -> None:
    """Raise ``VolumeRefused`` for the first volume that must not be snapshotted, or kept, now.

    It is the pools of the ``sources`` that get more volumes: of what is snapshotted or cloned,
    which is the volumes themselves when it is left out.
    """
    threshold_percent = functools.cache(extend_threshold_percent)
    volumes = list(volumes)
    disks_in = Counter(volume.vg_uuid for volume in volumes)
    for volume in volumes:
        _check_group(volume, disks_in[volume.vg_uuid])
        _check_group_name(report, volume)
        check_devices(report, volume)
        _check_volume(volume)
        newname.require_layer(volume)
    for volume in volumes if sources is None else sources:
        if volume.kind is VolumeKind.THICK:
            continue
        pool = report.lv_from_name(volume.vg, volume.pool)
        if pool is None:
            raise VolumeRefused(
                volume=str(volume.ref), why=f"its thin pool {volume.pool!r} is not reported"
            )
        thinpool.check(
            pool,
            data_limit_percent=data_limit_percent,
            metadata_limit_percent=metadata_limit_percent,
        )
        thinpool.check_addition(pool, threshold_percent)


def check_room(report: Report, needed_bytes: Mapping[str, int], limit_percent: float) -> None:
    """Raise ``NoSpace`` when a group has no room for the stores that thick snapshots need there.

    It may be ``limit_percent`` full with them.
    """
    for vg, needed in needed_bytes.items():
        some = next((volume for volume in report.volumes if volume.vg == vg), None)
        kept = 0.0 if some is None else some.vg_bytes * (1 - limit_percent / 100)
        free = 0 if some is None else some.vg_free_bytes
        if needed and needed > free - kept:
            limit = f" (at most {limit_percent:g} % full: group_limit_percent)" if kept else ""
            raise NoSpace(
                where=f"volume group {vg}{limit}",
                needed=f"{_mib(needed)} for thick snapshots",
                free=_mib(max(free - kept, 0)),
                remedy="make room (`snapvm delete`, `vgextend`), or let less than everything "
                "change with --cow-size, such as 20%: a snapshot is lost if more does",
            )


def check_siblings(report: Report, disk: LogicalVolume, snapshot: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` when taking a disk back would overflow another snapshot of it.

    Writing a chunk back costs every snapshot that has no copy of it yet a chunk; as many as the
    chosen snapshot holds, at the most.
    """
    for sibling in report.snapshots_of(disk):
        if sibling.uuid == snapshot.uuid or sibling.is_lost:
            continue
        # A sibling with larger chunks copies a whole one of its own for each that is written.
        widened = max(1.0, sibling.chunk_bytes / (snapshot.chunk_bytes or sibling.chunk_bytes or 1))
        held = snapshot.held_bytes * widened * _MEANWHILE
        left = sibling.size_bytes - sibling.held_bytes
        if not _cannot_overflow(sibling) and left < held:
            raise VolumeRefused(
                volume=str(sibling.ref),
                why=f"{_mib(held)} of {disk.ref} may be written back, and this snapshot of it "
                f"has to keep a copy of the former data, but has room for only {_mib(left)}",
                remedy="delete that snapshot first, if nothing needs it (see `snapvm list`)",
            )


def loss(snapshot: LogicalVolume) -> str:
    """Say why the kernel has given a thick snapshot up; empty when it has not."""
    if not snapshot.is_lost:
        return ""
    unwritten = "its store could not be written (the kernel's log tells more)"
    if _cannot_overflow(snapshot):
        return unwritten
    return f"more changed than its {_mib(snapshot.size_bytes)} can keep, or {unwritten}"


def is_nearly_full(volume: LogicalVolume) -> bool:
    """Tell whether a thick snapshot will be lost soon: changes go on, and its store is bounded."""
    if not volume.is_thick_snapshot or (volume.data_percent or 0) < _FULL_SOON_PERCENT:
        return False
    return not _cannot_overflow(volume)


def is_short_of_metadata(free_bytes: int) -> bool:
    """Tell whether takes will soon be refused for want of room in a group's own metadata."""
    return free_bytes < _FEW_METADATA_BYTES


def _cannot_overflow(snapshot: LogicalVolume) -> bool:
    """Tell whether a thick snapshot has room for every chunk of its disk."""
    chunk_bytes = snapshot.chunk_bytes or cowsize.DEFAULT_CHUNK_BYTES
    whole = cowsize.store_bytes(
        snapshot.disk_bytes, snapshot.vg_extent_bytes, cowsize.FULL, chunk_bytes
    )
    return snapshot.size_bytes >= whole


def _mib(size_bytes: float) -> str:
    return f"{-(-int(size_bytes) // (1 << 20))} MiB"


def _check_group(volume: LogicalVolume, disks: int) -> None:
    group = f"volume group {volume.vg}"
    if not volume.is_group_whole:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{group} lacks physical volumes",
            remedy=away.making_whole(volume.vg),
        )
    if not volume.is_group_writable:
        raise VolumeRefused(volume=str(volume.ref), why=f"{group} is exported or read-only")
    if volume.vg_metadata_free_bytes < disks * _DISK_METADATA_BYTES:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{group} has only {volume.vg_metadata_free_bytes >> 10} KiB left for metadata "
            "(vgs -o +vg_mda_free), and a rollback must not run out of room halfway",
            remedy="delete snapshots of any domain, or volumes, that nothing needs",
        )
    if volume.vg_volumes_left is not None and volume.vg_volumes_left < disks:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{group} is limited in its volumes (max_lv): {volume.vg_volumes_left} more "
            f"allowed, {disks} needed",
            remedy=f"lift its limit: vgchange --logicalvolume 0 {volume.vg}; or delete snapshots",
        )
    if volume.is_group_shared:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{group} is shared with other hosts ({volume.vg_lock_type}), whose writes go on",
        )


def _check_group_name(report: Report, volume: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` for one of two groups of a name, as a guest's may be on a LUN.

    LVM obeys no command on either (lvm2, tools/toollib.c, _resolve_duplicate_vgnames).
    """
    uuids = report.groups_named(volume.vg)
    if len(uuids) > 1:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"LVM sees {len(uuids)} volume groups named {volume.vg}",
            remedy="hide the other one from this host's LVM (lvmdevices(8), or global_filter in "
            "lvm.conf), or rename it: vgrename "
            + " or ".join(sorted(uuid for uuid in uuids if uuid != volume.vg_uuid)),
        )


def check_devices(report: Report, volume: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` for a group that LVM does not change; see ``duplicates``."""
    device = report.doubled().get(volume.vg)
    if device is not None:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"LVM finds a physical volume of volume group {volume.vg} on {device} too, and "
            "changes nothing in the group meanwhile",
            remedy="if that is another path to it, have multipathd join them; if it is a copy, "
            "hide it from this host's LVM (lvmdevices(8), or global_filter in lvm.conf), or make a "
            f"group of its own of it: vgimportclone {device}",
        )


def _check_volume(volume: LogicalVolume) -> None:
    name, ending = str(volume.ref), _UNTIL_ENDED.format(volume.vg)
    if volume.is_thick_snapshot:
        raise VolumeRefused(
            volume=name,
            why=f"it is itself a snapshot (of {volume.origin}), and LVM cannot snapshot that",
            remedy="let the domain use an independent volume, or a thin one",
        )
    if not volume.roles & _PUBLIC or volume.layout & _POOLS:
        raise VolumeRefused(volume=name, why="it is internal to LVM, not a disk")
    for layout, (what, remedy) in _UNSUITED_LAYOUTS.items():
        if layout in volume.layout:
            why = f"{what}, and snapvm takes no snapshots of such a volume"
            raise VolumeRefused(volume=name, why=why, remedy=remedy.format(name))
    if "pvmove" in volume.layout or volume.is_locked:
        raise VolumeRefused(volume=name, why="LVM is moving or converting it", remedy=ending)
    if volume.has_merging_snapshot:
        raise VolumeRefused(volume=name, why="a snapshot is being merged into it", remedy=ending)
    if volume.is_skipped and not volume.is_active:
        raise VolumeRefused(
            volume=name,
            why="it is not active, and LVM activates it only on demand, as it does a snapshot",
            remedy=f"if it is the disk: {activating(volume)}",
        )
    if volume.is_suspended:
        raise VolumeRefused(
            volume=name,
            why="its device is suspended, as an LVM command leaves it that was killed",
            remedy=f"have it go on: lvchange --refresh {name}",
        )
    if volume.state not in ("a", "-"):
        raise VolumeRefused(
            volume=name,
            why=f"its device is in trouble (lvs shows state {volume.state!r})",
            remedy=f"see `lvs -a -o+lv_health_status {name}` and `dmsetup info`",
        )


def activating(volume: LogicalVolume) -> str:
    """Return what to type to give a volume a device."""
    skipped = " --ignoreactivationskip" if volume.is_skipped else ""
    return f"lvchange -ay{skipped} {volume.ref}"


def check_removable(report: Report, volume: LogicalVolume, whose: str) -> None:
    """Raise ``VolumeRefused`` for one that LVM does not remove now (lvm2, lv_remove_single).

    That may be so for hours, or until the next start of a domain.  A delete that has been begun and
    cannot be finished would keep every other command from the domain for as long.  With ``whose``
    the reason begins.
    """
    _check_group_name(report, volume)
    check_devices(report, volume)
    pool = report.lv_from_name(volume.vg, volume.pool) if volume.pool else None
    if pool is not None:
        thinpool.check_removal(pool, volume, whose)
    if volume.is_locked:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{whose}LVM is moving it (pvmove)",
            remedy=f"wait until it has moved (lvs -a {volume.vg}), or: pvmove --abort",
        )
    if volume.is_merging and not volume.is_given_up:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{whose}LVM is merging it into its disk, or is about to",
            remedy=_UNTIL_ENDED.format(volume.vg),
        )


def check_nothing_above(volume: LogicalVolume, report: Report) -> None:
    """Raise ``VolumeRefused`` for what has snapshots, or thin volumes of another pool read from.

    LVM would remove all of them with it, for it is told yes to everything (lvmthin(7)).
    """
    for above in report.snapshots_of(volume):
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"its own snapshot {above.ref} needs it",
            remedy=f"if nothing needs that one: lvremove {above.ref}",
        )
    if not volume.is_external_origin:
        return
    overlay = next(iter(report.overlays_of(volume)), None)
    name = "another volume" if overlay is None else str(overlay.ref)
    raise VolumeRefused(
        volume=str(volume.ref),
        why=f"it is the external origin of {name}, which would be removed with it",
        remedy=f"if nothing needs that one: lvremove {overlay.ref}" if overlay else "",
    )


def check_replaceable(report: Report, current: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` for a disk that LVM would not let a rollback replace or write over.

    A thick disk is written over; a thin one is made read-only and inactive.  Only warned of is a
    fixed device number, which the replacement cannot get while the domain runs on it.
    """
    if not current.is_writable:
        raise VolumeRefused(
            volume=str(current.ref),
            why="it is read-only, and a rollback would write to it or replace it",
            remedy=f"lvchange --permission rw {current.ref} (or see read_only_volume_list in "
            "lvm.conf)",
        )
    is_thin = current.kind is VolumeKind.THIN
    above = next((each for each in report.snapshots_of(current) if each.is_open), None)
    if is_thin and above is not None:  # lvm2, activate.c, _lv_has_open_snapshots
        raise VolumeRefused(
            volume=str(above.ref),
            why=f"it is in use, so that LVM cannot deactivate its origin {current.ref}",
            remedy=f"end what uses it ({holders.finding_users(above.ref)})",
        )
    if current.has_fixed_number and is_thin:
        minor = "N" if current.device is None else current.device[1]
        log.warning(
            "%s has a fixed device number, but its replacement has none; to give it one while the "
            "domain is off: lvchange --persistent y --minor %s %s",
            current.ref,
            minor,
            current.ref,
        )
