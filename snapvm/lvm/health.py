"""Is the volume of a snapshot still what was recorded?  Pure questions about one report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from snapvm.lvm import preflight
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.model import DiskRecord, VolumeKind
from snapvm.refusals import VolumeRefused


class VolumeState(StrEnum):
    """How a snapshot's volume is, the best first; what LVM does not say is unknown, never good."""

    OK = "ok"
    NEARLY_FULL = "nearly full"
    """Thick: little more may change before it is lost."""
    UNKNOWN = "unknown"
    MERGING = "merging"
    """Somebody lets LVM merge it into its disk, which uses it up."""
    LOST = "lost"
    """Thick: more changed than it can keep, so the kernel gave it up."""
    GONE = "gone"


_BADNESS = {state: number for number, state in enumerate(VolumeState)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of one disk's snapshot, and how much of what it can keep is used."""

    target: str
    state: VolumeState
    fill_percent: float | None = None
    """Of thick snapshots whose disk is active; None otherwise."""


def of_disk(disk: DiskRecord, report: Report | None) -> Health:
    """Judge the snapshot of one disk; without a report nothing is known."""
    if report is None:
        return Health(target=disk.target, state=VolumeState.UNKNOWN)
    try:
        volume = report.lv_of(disk.snapshot)
    except VolumeRefused:  # it may be one of two
        return Health(target=disk.target, state=VolumeState.UNKNOWN)
    if volume is None:
        return Health(target=disk.target, state=VolumeState.GONE)
    if volume.is_merging:
        return Health(target=disk.target, state=VolumeState.MERGING)
    if disk.kind is VolumeKind.THIN:
        return Health(target=disk.target, state=VolumeState.OK)
    fill_percent = volume.data_percent if volume.is_active else None
    return Health(target=disk.target, state=_of_thick(volume), fill_percent=fill_percent)


def _of_thick(volume: LogicalVolume) -> VolumeState:
    if volume.is_lost:
        return VolumeState.LOST
    if not volume.is_active or volume.data_percent is None:
        return VolumeState.UNKNOWN
    return VolumeState.NEARLY_FULL if preflight.is_nearly_full(volume) else VolumeState.OK


def worst(healths: Iterable[Health]) -> Health | None:
    """Return that of the disk which is worst off; None when there is no disk."""
    return max(healths, key=_how_bad, default=None)


def _how_bad(health: Health) -> tuple[int, float]:
    return _BADNESS[health.state], health.fill_percent or 0.0
