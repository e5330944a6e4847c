"""What a rollback that stopped half-way has exchanged, and taking that back."""

from __future__ import annotations

from collections.abc import Iterable

from snapvm import writingback
from snapvm.errors import SnapvmError
from snapvm.failures import DiskMissing, OldJournal, StorageFailed
from snapvm.lvm import argv, belonging
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import Progress, Record, Role
from snapvm.refusals import RecordUnusable
from snapvm.rollbackjournal import JournalDisk


def put_names_back(lvm: Lvm, set_: str, disks: Iterable[JournalDisk]) -> None:
    """Take the renames back, from wherever they stopped; of thick disks nothing was renamed.

    Raises ``DiskMissing`` before the first of them: a disk that is not there keeps a wrong name;
    and ``StillAtWork`` while an lvm may yet rename one.
    """
    known = list(disks)
    renamed = [disk for disk in known if not disk.is_thick]
    for vg in {disk.vg for disk in renamed}:
        lvm.outlast(vg)
    report = lvm.report()
    for disk, former in [(disk, _former(report, disk)) for disk in renamed]:
        holder = report.lv_from_name(disk.vg, disk.name)
        if holder is not None and _is_rolling(holder, set_):
            lvm.rename(disk.vg, disk.name, disk.clone_name)
        if former.name != disk.name:
            lvm.rename(disk.vg, former.name, disk.name)
    found = map(report.lv_of, (disk.former for disk in known))
    if any(volume is not None and volume.is_suspended for volume in found):
        lvm.wake(disk.former for disk in known)  # by the names that they have now
    lvm.bring_to_disk(disk.former for disk in renamed)


def _former(report: Report, disk: JournalDisk) -> LogicalVolume:
    former = report.lv_of(disk.former)
    if former is None or former.vg != disk.vg:
        raise DiskMissing(volume=str(disk), uuid=disk.current)
    return former


def require_groups(report: Report, disks: Iterable[JournalDisk]) -> None:
    """Raise ``DiskMissing`` while a volume group is away: nothing that was in it can be judged.

    A copy of it that has its name is another one.  One that has another name has to get its own
    back: by that the domain names its disks.
    """
    there = {(volume.vg, uuid) for volume in report.volumes for uuid in (volume.vg_uuid, "")}
    for disk in disks:
        if (disk.vg, disk.vg_uuid) not in there:
            now = report.group_now(disk.former)
            raise DiskMissing(volume=str(disk), uuid=disk.current, group_now=now)


def is_way_lost(report: Report, disks: Iterable[JournalDisk]) -> bool:
    """Tell whether a thick disk cannot be written back any more: its snapshot is gone for good.

    That is not said of one in a group that LVM does not show just now.
    """
    for disk in disks:
        if disk.is_thick and report.shows(disk.snapshot):
            snapshot = report.lv_of(disk.snapshot)
            if snapshot is None or snapshot.is_lost:
                return True
    return False


def mending(report: Report, disks: Iterable[JournalDisk], error: SnapvmError) -> str:
    """Say what to do about disks that could not be brought back, before the next repair.

    LVM does not call a snapshot lost that merely cannot be read: each repair would fail at it.
    """
    found = [report.lv_of(disk.snapshot) for disk in disks if disk.is_thick]
    names = " or ".join(str(volume.ref) for volume in found if volume is not None)
    is_of_device = isinstance(error, StorageFailed) and error.path.startswith("/dev/")
    if not (is_of_device and names):
        return way_on(error)
    return (
        "fix the cause, or, if a snapshot cannot be read any more, remove it to have the former "
        f"disks put back (lvremove {names})"
    )


def way_on(error: SnapvmError) -> str:
    """Say what to do about what keeps a rollback from its end, before the next repair."""
    if type(error) is RecordUnusable:  # whose hint is to take another snapshot instead
        return "bring back what cannot be used, as from a backup"
    return error.hint() or "fix the cause"


def give_back(lvm: Lvm, set_: str, disks: Iterable[JournalDisk], progress: Progress) -> None:
    """Give a domain that is off its former disks again, thick ones from what is kept of them.

    May be done again.  Raises as ``writingback.copy_back`` and ``put_names_back`` do.
    """
    known = list(disks)
    report = lvm.report()
    for disk in known:
        if disk.is_thick:
            present = writingback.present_of(report, set_, disk.former)
            writingback.write_back(lvm, report, disk, present, progress)
    put_names_back(lvm, set_, known)


def are_swapped(report: Report, set_: str, disks: Iterable[JournalDisk]) -> bool:
    """Tell whether the present of every disk is kept, as ``swapping.exchange`` does it."""
    return all(_is_exchanged(report, set_, disk) for disk in disks)


def is_settled(report: Report, set_: str, disks: Iterable[JournalDisk]) -> bool:
    """Tell whether the bookkeeping after a rollback has begun: all of its disks were back by then.

    What was current has become a snapshot like any other; see ``swapping.settle``.
    """
    kept = {argv.TAG_OURS, argv.set_tag(set_), argv.role_tag(Role.UNDO)}
    for disk in disks:
        former = report.lv_of(disk.former)
        if disk.is_thick:
            former = writingback.present_of(report, set_, disk.former)
        if former is not None and kept <= former.tags:
            return True
    return False


def require_known(report: Report, set_: str, disks: Iterable[JournalDisk]) -> None:
    """Raise ``OldJournal`` for a disk in a state in which no unfinished rollback leaves one.

    The volume that has its name is neither what it was nor what it was to become: it is newer.
    """
    for disk in disks:
        holder = report.lv_from_name(disk.vg, disk.name)
        is_former = holder is not None and holder.uuid == disk.current
        if not (holder is None or is_former or _is_rolling(holder, set_)):
            raise OldJournal(volume=str(disk), why="it has become another volume since")


def require_presents(report: Report, set_: str, disks: Iterable[JournalDisk]) -> None:
    """Raise ``OldJournal`` for a thick disk that nothing keeps the present of any more.

    No rollback writes one back without: somebody has deleted that, as one does after its end.
    """
    for disk in disks:
        if disk.is_thick and writingback.present_of(report, set_, disk.former) is None:
            raise OldJournal(volume=str(disk), why="the copy of its former contents is gone")


def have_moved(
    report: Report, set_: str, disks: Iterable[JournalDisk], *, is_new_boot: bool
) -> bool:
    """Tell whether a domain that is on has been started on a clone: the former one is gone then.

    The former domain would hold the former disk open, whatever its name.  In another boot of the
    host any domain that is on has been started since.
    """
    for disk in disks:
        clone = report.lv_from_name(disk.vg, disk.name)
        if disk.is_thick or clone is None or not _is_rolling(clone, set_):
            continue
        former = report.lv_of(disk.former)
        if is_new_boot or (clone.is_open and former is not None and not former.is_open):
            return True
    return False


def renew_clones(lvm: Lvm, set_: str, disks: Iterable[JournalDisk], undo: Record) -> None:
    """Put new clones in the place of those that a domain, now off, spoiled; may be done again."""
    whose = {str(kept.volume.uuid): belonging.of(undo, kept.target) for kept in undo.disks}
    thin = [disk for disk in disks if not disk.is_thick]
    put_names_back(lvm, set_, thin)
    report = lvm.report()
    for disk in thin:
        vg, name, clone = disk.vg, disk.name, disk.clone_name
        spoiled = report.lv_from_name(vg, clone)
        snapshot = report.lv_of(disk.snapshot)
        if snapshot is None:
            raise writingback.snapshot_gone(disk)
        if spoiled is not None and _is_rolling(spoiled, set_):
            lvm.remove([spoiled.ref], report)
        tags = belonging.tags(set_, disk.former, Role.ROLL, whose[disk.current])
        former = report.lv_of(disk.former)
        read_ahead = "auto" if former is None else former.read_ahead
        lvm.clone(snapshot.ref, clone, (*tags, *disk.user_tags), read_ahead)
        lvm.rename(vg, name, disk.undo_name)
        lvm.rename(vg, clone, name)
    lvm.bring_to_disk(disk.former for disk in thin)


def _is_exchanged(report: Report, set_: str, disk: JournalDisk) -> bool:
    if disk.is_thick:
        return writingback.present_of(report, set_, disk.former) is not None
    holder = report.lv_from_name(disk.vg, disk.name)
    return holder is not None and _is_rolling(holder, set_)


def _is_rolling(volume: LogicalVolume, set_: str) -> bool:
    return {argv.TAG_OURS, argv.set_tag(set_), argv.role_tag(Role.ROLL)} <= volume.tags
