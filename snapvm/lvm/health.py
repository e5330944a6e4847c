"""Judge whether a snapshot's volume is still as it was recorded, from one report of LVM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from snapvm.lvm import argv, away, preflight
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import DiskRecord, VolumeKind
from snapvm.refusals import VolumeRefused


class VolumeState(StrEnum):
    """The state of a snapshot's volume, the best first; if LVM does not say it is unknown."""

    OK = "ok"
    NEARLY_FULL = "nearly full"
    """Thick: little more may change before it is lost."""
    UNKNOWN = "unknown"
    AWAY = "no group"
    """Its volume group is out of reach (``snapvm.lvm.away``); the volume may be as it was."""
    MERGING = "merging"
    """LVM is merging it into its disk, and will then remove it."""
    UNUSABLE = "unusable"
    """It is not as it was recorded, or may not be; ``trouble`` says why."""
    LOST = "lost"
    """Thick: the kernel gave it up, for more changed than it can keep, or it cannot be written."""
    GONE = "gone"


_USELESS = frozenset(
    {VolumeState.MERGING, VolumeState.UNUSABLE, VolumeState.LOST, VolumeState.GONE}
)
"""In these a snapshot surely cannot be gone back to; in the others it can, or nobody knows."""
_BADNESS = {state: number for number, state in enumerate(VolumeState)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of one disk's snapshot, and how much of what it can keep is used."""

    target: str
    state: VolumeState
    fill_percent: float | None = None
    """Of thick snapshots whose disk is active; None otherwise."""
    volume: str = ""
    """The name that its volume has now; empty when it is not there, or that is not known."""


def trouble(disk: DiskRecord, volume: LogicalVolume | None) -> str:
    """Say why a snapshot's volume cannot be used for a rollback; return nothing when it can.

    ``volume`` is None only when its group is there and the volume is gone (``away.of_disk``).  A
    snapshot that somebody has activated to read it is in order: it stays read-only.
    """
    return _judged(disk, volume)[1]


def of_disk(disk: DiskRecord, report: Report | None) -> Health:
    """Judge the snapshot of one disk; without a report nothing is known."""
    if report is None:
        return Health(target=disk.target, state=VolumeState.UNKNOWN)
    try:
        volume = report.lv_of(disk.snapshot)
        if volume is None and away.of_disk(disk, report) is not None:
            return Health(target=disk.target, state=VolumeState.AWAY)
    except VolumeRefused:  # it may be one of two
        return Health(target=disk.target, state=VolumeState.UNKNOWN)
    state, text = _judged(disk, volume)
    fill_percent = None
    if volume is not None and not text and disk.kind is VolumeKind.THICK:
        if not volume.is_known_whole:
            state = VolumeState.UNKNOWN
        else:
            fill_percent = volume.data_percent
            state = VolumeState.NEARLY_FULL if preflight.is_nearly_full(volume) else state
    name = "" if volume is None else f"{volume.vg}/{volume.name}"
    return Health(target=disk.target, state=state, fill_percent=fill_percent, volume=name)


def _judged(disk: DiskRecord, volume: LogicalVolume | None) -> tuple[VolumeState, str]:
    """Return the state of a volume without regard to its fill, and a text on what is wrong."""
    if volume is None:
        return VolumeState.GONE, "is gone"
    merging, unusable = VolumeState.MERGING, VolumeState.UNUSABLE
    is_resized = volume.disk_bytes != disk.size_bytes
    is_detached = disk.kind is VolumeKind.THICK and not volume.is_thick_snapshot
    troubles = (
        (volume.is_lost, VolumeState.LOST, f"is lost: {preflight.loss(volume)}"),
        (volume.is_merging, merging, "is being merged into its disk, which uses it up"),
        (is_detached, unusable, "is no longer a snapshot"),
        (is_resized, unusable, "has a different size from the one recorded"),
        (volume.is_writable, unusable, "is writable and may have changed"),
        (bool(volume.health), unusable, f"is not healthy: {volume.health}"),
        (argv.TAG_OURS not in volume.tags, unusable, "no longer has its tags"),
    )
    found = ((state, text) for is_so, state, text in troubles if is_so)
    return next(found, (VolumeState.OK, ""))


def is_useless(healths: Iterable[Health]) -> bool:
    """Tell whether no rollback to a snapshot is possible, for one of its volumes."""
    return any(health.state in _USELESS for health in healths)


def worst(healths: Iterable[Health]) -> Health | None:
    """Return that of the disk which is worst off; None when there is no disk."""
    return max(healths, key=_how_bad, default=None)


def _how_bad(health: Health) -> tuple[int, float]:
    return _BADNESS[health.state], health.fill_percent or 0.0
