"""May this volume be snapshotted, and its pool bear it?  Pure questions about one report."""

from __future__ import annotations

from collections.abc import Iterable

from snapvm.errors import VolumeRefused
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.model import VolumeKind

_BUSY_LAYOUTS = frozenset({"pvmove", "cache", "writecache", "vdo"})
_POOL_TROUBLES = {
    "D": "the thin pool is out of data space",
    "M": "the thin pool's metadata is read-only",
    "F": "the thin pool has failed",
    "E": "the thin pool has failed",
    "X": "the thin pool's health cannot be read",
}


def check_volumes(
    report: Report,
    volumes: Iterable[LogicalVolume],
    *,
    data_limit_percent: float,
    metadata_limit_percent: float,
) -> None:
    """Raise ``VolumeRefused`` for the first volume that must not be snapshotted now."""
    for volume in volumes:
        _check_group(volume)
        _check_volume(volume)
        pool = report.lv_from_name(volume.vg, volume.pool)
        if pool is None:
            raise VolumeRefused(
                volume=str(volume.ref), why=f"its thin pool {volume.pool!r} is not reported"
            )
        _check_pool(pool, data_limit_percent, metadata_limit_percent)


def _check_group(volume: LogicalVolume) -> None:
    group = f"volume group {volume.vg}"
    if volume.vg_missing_pvs or volume.vg_attr[3:4] == "p":
        raise VolumeRefused(volume=str(volume.ref), why=f"{group} lacks physical volumes")
    if volume.vg_attr[2:3] == "x" or volume.vg_attr[0:1] != "w":
        raise VolumeRefused(volume=str(volume.ref), why=f"{group} is exported or read-only")
    if volume.vg_lock_type not in ("", "none"):
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{group} is shared with other hosts ({volume.vg_lock_type}), whose writes go on",
        )


def _check_volume(volume: LogicalVolume) -> None:
    name = str(volume.ref)
    if volume.kind is not VolumeKind.THIN:
        raise VolumeRefused(
            volume=name,
            why="it is not thin, and this version of snapvm snapshots thin volumes only",
            remedy="move the disk to a thin volume, or wait for the release with thick volumes",
        )
    if volume.layout & _BUSY_LAYOUTS or volume.attr[2:3].isupper():
        raise VolumeRefused(volume=name, why="LVM is moving or converting it")
    if volume.attr[0:1] in ("O", "S"):
        raise VolumeRefused(volume=name, why="a snapshot is being merged into it")
    if "k" in volume.attr[9:10] and not volume.is_active:
        raise VolumeRefused(volume=name, why="it is a snapshot that is not activated")
    if volume.state not in ("a", "-"):
        raise VolumeRefused(
            volume=name,
            why=f"its device is not in order (lvs shows state {volume.state!r})",
            remedy=f"look at `lvs -a -o+lv_health_status {name}` and `dmsetup info`",
        )


def _check_pool(pool: LogicalVolume, data_limit: float, metadata_limit: float) -> None:
    name = str(pool.ref)
    trouble = _POOL_TROUBLES.get(pool.attr[8:9])
    if trouble is None and (pool.state in ("c", "C") or pool.health == "check_needed"):
        trouble = "the thin pool needs thin_check"
    if trouble is not None:
        raise VolumeRefused(
            volume=name, why=trouble, remedy=f"repair the pool first: lvs -a {pool.vg}"
        )
    fills = (
        ("data", pool.data_percent, data_limit),
        ("metadata", pool.metadata_percent, metadata_limit),
    )
    for what, percent, limit in fills:
        if percent is None:
            raise VolumeRefused(volume=name, why=f"how full its {what} is cannot be read")
        if percent > limit:
            raise VolumeRefused(
                volume=name,
                why=f"its {what} is {percent:.1f} % full, more than the limit of {limit:g} %",
                remedy=f"`lvextend` it, delete snapshots, or raise pool_{what}_limit_percent",
            )
