"""Thick disks on their way back: written in place, from what snapshots of them hold.

See ``snapvm.lvm.copyback`` for how; here is whether, and which.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from snapvm import occupancy, retry
from snapvm.clock import Deadline
from snapvm.errors import SnapvmError
from snapvm.failures import DiskMissing, RollbackFailed, StorageFailed
from snapvm.lvm import argv
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.preflight import check_siblings, loss
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import LvRef, Progress
from snapvm.planning import RollbackPlan, SwapDisk
from snapvm.refusals import RecordUnusable, VolumeRefused
from snapvm.rollbackjournal import JournalDisk

_LOOK_SECONDS = 1.0
"""The least time that a report gets, even where hardly any of the window's is left."""


def known_before(lvm: Lvm, plan: RollbackPlan) -> Report:
    """Return what LVM has of the thick disks, asked while the domain runs; nothing without any."""
    return lvm.report() if plan.thick_disks else Report(())


def require_kept(lvm: Lvm, plan: RollbackPlan, known: Report, deadline: Deadline) -> None:
    """Look once more, below the standing domain, whether all that is written back is still there.

    It has written since the plan was made, and a thick snapshot keeps only so much of that.  All
    else was ``known_before``: thousands of volumes take LVM seconds, and it waits for its locks.
    Raises ``RollbackFailed``, and ``CommandTimedOut`` when that is not said in time.
    """
    thick = plan.thick_disks
    if not thick:
        return
    disks = [volume for volume in (known.lv_of(disk.current) for disk in thick) if volume]
    report = lvm.filled(known, disks, max(deadline.left_seconds, _LOOK_SECONDS))
    for disk in thick:
        why = _damage(report, disk)
        if why:
            raise RollbackFailed(domain=plan.domain.name, id=plan.record.id, why=why)


def _damage(report: Report, disk: SwapDisk) -> str:
    """Say why a thick disk cannot be written back, or not without harm; empty when it can."""
    snapshot = report.lv_of(disk.snapshot)
    current = report.lv_of(disk.current)
    if snapshot is None or current is None or not snapshot.is_known_whole:
        return f"{disk.snapshot} is lost: more has changed meanwhile than it can keep"
    try:
        check_siblings(report, current, snapshot)
    except VolumeRefused as refused:
        return str(refused)
    return ""


def copy_back(lvm: Lvm, disks: Iterable[JournalDisk], progress: Progress) -> None:
    """Write the contents of their snapshots onto the thick disks, which nobody uses.

    May be done again from the start.  Raises ``StorageFailed``, ``RecordUnusable``,
    ``DiskMissing``, or ``VolumeRefused`` for one that somebody uses.
    """
    thick = [disk for disk in disks if disk.is_thick]
    if not thick:
        return
    report = lvm.report()
    for disk in thick:
        write_back(lvm, report, disk, report.lv_of(disk.snapshot), progress)


def write_back(
    lvm: Lvm,
    report: Report,
    disk: JournalDisk,
    snapshot: LogicalVolume | None,
    progress: Progress,
) -> None:
    """Make a thick disk equal to a snapshot of it; see ``copy_back``."""
    require_shown(report, disk)
    current = report.lv_of(disk.former)
    if snapshot is None or current is None or not snapshot.is_snapshot_of(current):
        raise snapshot_gone(disk)
    if current.is_open:
        _wait_until_unused(lvm, current.ref)
    if not current.is_active:  # its snapshots have devices only together with it
        lvm.activate([current.ref])
    progress.phase(f"writing back {current.ref}")
    try:
        if snapshot.is_lost:
            why = f"the snapshot is lost: {loss(snapshot)}"
            raise StorageFailed(path=str(snapshot.ref), why=why)
        lvm.copy_back(snapshot.ref, current.ref, progress)
    except StorageFailed:
        # A boot may be what follows, after which LVM itself may not know that it is lost.
        with suppress(SnapvmError):
            lvm.mark_lost(lvm.report())
        raise


def require_shown(report: Report, disk: JournalDisk) -> None:
    """Raise ``DiskMissing`` while LVM shows nothing of a disk's group: nothing of it is gone then.

    The path to a SAN may be down for a moment.
    """
    if not report.shows(disk.former):
        raise DiskMissing(volume=str(disk), uuid=disk.current)


def present_of(report: Report, set_: str, disk: LvRef) -> LogicalVolume | None:
    """Return the snapshot that keeps what a thick disk was when a rollback began with it.

    It is known by its tags: somebody may have given it another name meanwhile.
    """
    current = report.lv_of(disk)
    upon = () if current is None else report.snapshots_of(current)
    ours = {argv.TAG_OURS, argv.set_tag(set_)}
    return next((volume for volume in upon if ours <= volume.tags), None)


def snapshot_gone(disk: JournalDisk) -> RecordUnusable:
    """Return what to raise when a disk cannot become what its snapshot holds."""
    why = "its snapshot is gone in the middle of a rollback"
    return RecordUnusable(path=str(disk), why=why, is_of_part=True)


def _wait_until_unused(lvm: Lvm, disk: LvRef) -> None:
    """Let the last user of a disk go, a moment after its domain; raise ``VolumeRefused``.

    The kernel refuses none of what opens a device without asking to be alone, as QEMU does.
    """

    def look() -> None:
        volume = lvm.report().lv_of(disk)
        if volume is not None:
            occupancy.require_unused(volume)

    retry.unused(look)
