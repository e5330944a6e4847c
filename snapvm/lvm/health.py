"""Is the volume of a snapshot still what was recorded?  Pure questions about one report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from snapvm.lvm.report import Report
from snapvm.model import DiskRecord, VolumeKind


class VolumeState(StrEnum):
    """How a snapshot's volume is; what LVM does not say is unknown, never good."""

    OK = "ok"
    GONE = "gone"
    LOST = "lost"
    """Thick: more changed than it can keep, so the kernel gave it up."""
    UNKNOWN = "unknown"


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
    volume = report.lv_from_uuid(disk.snapshot.uuid)
    if volume is None:
        return Health(target=disk.target, state=VolumeState.GONE)
    if disk.kind is VolumeKind.THIN:
        return Health(target=disk.target, state=VolumeState.OK)
    if volume.is_lost:
        return Health(target=disk.target, state=VolumeState.LOST)
    is_told = volume.is_active and volume.data_percent is not None
    state = VolumeState.OK if is_told else VolumeState.UNKNOWN
    return Health(target=disk.target, state=state, fill_percent=volume.data_percent)
