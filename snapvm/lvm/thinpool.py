"""May a thin pool have more in it?  Pure questions about one report."""

from __future__ import annotations

from collections.abc import Callable

from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.refusals import VolumeRefused

_METADATA_ROOM_BYTES = 4 << 20
_METADATA_ROOM_PERCENT = 25.0
"""LVM makes a thin volume only while the smaller of both is free in the pool's metadata (lvm2,
lib/metadata/thin_manip.c, thin_pool_metadata_min_threshold)."""
_THRESHOLD_LEAST_PERCENT = 50.0
"""lvm.conf's thin_pool_autoextend_threshold is not meant to be less."""
_TROUBLES = {
    "D": "the thin pool is out of data space",
    "M": "the thin pool's metadata is read-only",
    "F": "the thin pool has failed",
    "E": "the thin pool has failed",
    "X": "the thin pool's health cannot be read",
}
"""By ``LogicalVolume.health_letter``; see lvs(8)."""
_DEAF = frozenset("MFE")
"""A pool in one of these takes no orders.  One that is out of data space does: removals help it."""


def trouble_of(pool: LogicalVolume) -> str:
    """Say why a thin pool can take no more writes; empty when it can."""
    trouble = _TROUBLES.get(pool.health_letter, "")
    if not trouble and pool.needs_check:
        trouble = "the thin pool needs thin_check"
    for what, percent in (("data", pool.data_percent), ("metadata", pool.metadata_percent)):
        if percent is not None and percent >= 100:
            return f"the thin pool's {what} is {percent:.1f} % full"
    return trouble


def is_in_kernel(pool: LogicalVolume) -> bool:
    """Tell whether the kernel has a pool, which may fill up then.

    LVM calls one inactive of which only volumes were activated, as by a cluster's manager, and
    tells its fill and health all the same (lvm2, activate.c, lv_info_with_seg_status).
    """
    is_told_of = pool.data_percent is not None or pool.health_letter in _TROUBLES
    return pool.is_mapped or is_told_of


def metadata_ceiling_percent(pool: LogicalVolume) -> float:
    """Say from which fill of a thin pool's metadata on LVM itself makes no snapshot in it."""
    if not pool.metadata_bytes:
        return 100.0
    room_percent = 100 * _METADATA_ROOM_BYTES / pool.metadata_bytes
    return 100.0 - min(_METADATA_ROOM_PERCENT, room_percent)


def check(pool: LogicalVolume, *, data_limit_percent: float, metadata_limit_percent: float) -> None:
    """Raise ``VolumeRefused`` for a thin pool in trouble, or fuller than the limits."""
    name = str(pool.ref)
    trouble = trouble_of(pool)
    if trouble:
        raise VolumeRefused(volume=name, why=trouble, remedy=_way_out(pool))
    _check_metadata(pool)
    fills = (
        ("data", pool.data_percent, data_limit_percent),
        ("metadata", pool.metadata_percent, metadata_limit_percent),
    )
    for what, percent, limit in fills:
        if percent is None:
            raise VolumeRefused(
                volume=name,
                why=f"LVM does not report how full its {what} is",
                remedy="" if pool.is_mapped else f"it is not active: lvchange -ay {name}",
            )
        if percent > limit:
            raise VolumeRefused(
                volume=name,
                why=f"its {what} is {percent:.1f} % full, more than the limit of {limit:g} %",
                remedy=f"extend it ({extending(pool, what)}), delete snapshots, or raise "
                f"`pool_{what}_limit_percent` in the settings",
            )


def check_addition(pool: LogicalVolume, threshold_percent: Callable[[str], float]) -> None:
    """Raise ``VolumeRefused`` for a pool that is in order, and to which LVM adds no volume.

    LVM adds none while the pool is moved, nor above the fill at which dmeventd should have extended
    it.  To ask for that threshold, which may be one of the pool's profile, costs a command: that is
    done only where the fill may be above it.
    """
    if pool.is_locked:
        raise VolumeRefused(
            volume=str(pool.ref),
            why="LVM is moving it (pvmove), and cannot create volumes in it meanwhile",
            remedy=f"wait until it has moved (lvs -a {pool.vg}), or: pvmove --abort",
        )
    fills = (("data", pool.data_percent or 0.0), ("metadata", pool.metadata_percent or 0.0))
    if max(percent for _, percent in fills) <= _THRESHOLD_LEAST_PERCENT:
        return
    limit = threshold_percent(pool.profile)
    where = f"profile {pool.profile}" if pool.profile else "lvm.conf"
    for what, percent in fills:
        if percent > limit:
            raise VolumeRefused(
                volume=str(pool.ref),
                why=f"its {what} is {percent:.1f} % full, and LVM creates no snapshot above "
                f"{limit:g} % ({where}, thin_pool_autoextend_threshold)",
                remedy=f"extend it by that policy: lvextend --use-policies {pool.ref}; or "
                "delete snapshots",
            )


def check_removal(pool: LogicalVolume, volume: LogicalVolume, whose: str) -> None:
    """Raise ``VolumeRefused`` for a volume of a pool that cannot be told to give it up.

    LVM would forget the volume first, and then fail: its metadata and the pool's would be of
    different transactions, of which a repair of the pool complains (lvm2, lv_manip.c,
    lv_remove_single; libdm-deptree.c, _thin_pool_node_send_messages).
    """
    if pool.health_letter in _DEAF or pool.needs_check:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{whose}nothing can be removed from {pool.ref} now: {trouble_of(pool)}",
            remedy=_repair(pool),
        )


def _way_out(pool: LogicalVolume) -> str:
    """Say what to do about a thin pool that can take no more writes."""
    if pool.health_letter in _DEAF or pool.needs_check:
        return _repair(pool)
    if pool.health_letter == "X":
        return f"look at it: lvs -a {pool.vg}"
    is_out_of_metadata = pool.metadata_percent is not None and pool.metadata_percent >= 100
    what = "metadata" if is_out_of_metadata else "data"
    return f"extend it ({extending(pool, what)}), or delete snapshots (`snapvm prune`)"


def extending(pool: LogicalVolume, what: str) -> str:
    """Return what to type to have a pool hold more ``data`` or ``metadata``."""
    option = "--poolmetadatasize" if what == "metadata" else "--size"
    return f"lvextend {option} +SIZE {pool.ref}"


def _repair(pool: LogicalVolume) -> str:
    return (
        f"repair the pool first, while it is not active: lvconvert --repair {pool.ref} (lvmthin(7))"
    )


def _check_metadata(pool: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` where LVM would make no snapshot, but not say so before the pause."""
    percent, ceiling = pool.metadata_percent, metadata_ceiling_percent(pool)
    if percent is not None and percent >= ceiling:
        raise VolumeRefused(
            volume=str(pool.ref),
            why=f"its metadata of {pool.metadata_bytes >> 20} MiB is {percent:.1f} % full, and LVM "
            f"creates no snapshot from {ceiling:.4g} % on",
            remedy=f"make it larger: lvextend --poolmetadatasize +{pool.metadata_bytes >> 20}M "
            f"{pool.ref}",
        )
