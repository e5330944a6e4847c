"""RAIDs with checksums below them (dm-integrity), of which not every LVM makes snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.refusals import VolumeRefused

_SINCE = (2, 3, 22)
"""The first LVM that makes them (lvm2, WHATS_NEW)."""


def check(
    report: Report,
    volumes: Iterable[LogicalVolume],
    lvm_version: Callable[[], tuple[int, ...]],
) -> None:
    """Raise ``VolumeRefused`` for a RAID with such a layer, where this host's LVM is too old.

    LVM would say so only while the domain stands still (lvm2, snapshot_manip.c,
    validate_snapshot_origin).  To ask for its version costs a command, which hardly anybody needs.
    """
    for volume in volumes:
        if _has_checksums(report, volume) and lvm_version() < _SINCE:
            raise VolumeRefused(
                volume=str(volume.ref),
                why="it is a RAID with dm-integrity, and this host's LVM takes no snapshots of "
                "such a volume",
                remedy=f"remove the integrity layer: lvconvert --raidintegrity n {volume.ref}; "
                "or upgrade LVM to 2.03.22",
            )


def _has_checksums(report: Report, volume: LogicalVolume) -> bool:
    """Tell whether it has; LVM reports the layer as the layout of the hidden images."""
    return "raid" in volume.layout and any(
        "integrity" in image.layout
        for image in report.volumes
        if image.vg_uuid == volume.vg_uuid and image.name.startswith(f"{volume.name}_rimage_")
    )
