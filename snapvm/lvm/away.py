"""Decide whether a volume that LVM does not show is gone, or out of reach with its group.

LVM shows nothing of a group whose path to the SAN is down, that is exported, or that belongs to
another host.  So a volume that LVM does not show is gone only if LVM shows the volume's group.  A
group is known by its uuid: another group may have its name, and a group with volumes of the same
uuids may be a copy.  These are pure questions about a report that ``Lvm.explained`` has completed;
without that no group is known to be empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapvm.lvm import argv
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report, VolumeGroup
from snapvm.model import DiskRecord, LvRef, Record
from snapvm.refusals import GroupAway

_PARTIAL = "partial"
"""A value of ``lv_health_status``: the volume, or its pool, is on a missing physical volume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """Why a volume group, or a volume in it, is out of reach."""

    group: str
    why: str
    remedy: str

    def refusal(self, snapshots: Iterable[str], *, forget: str = "") -> GroupAway:
        """Return the failure for these snapshots; ``forget`` is a command that needs no group."""
        return GroupAway(
            group=self.group,
            why=self.why,
            remedy=self.remedy,
            snapshots=tuple(snapshots),
            forget=forget,
        )


def of_record(record: Record, report: Report) -> Absence | None:
    """Return why a record's volumes cannot all be removed now; None when they can, or are gone."""
    return next(filter(None, (of_disk(disk, report) for disk in record.disks)), None)


def within_reach(record: Record, report: Report) -> list[LvRef]:
    """Return those of a record's volumes that can be removed, or are gone."""
    return [disk.snapshot for disk in record.disks if of_disk(disk, report) is None]


def of_disk(disk: DiskRecord, report: Report) -> Absence | None:
    """Return why the snapshot of a disk is out of reach; None when it is there, or is gone.

    Raises ``VolumeRefused`` when it is not clear which volume is meant (``Report.lv_of``).
    """
    volume = report.lv_of(disk.snapshot)
    if volume is not None:
        return _of_partial(volume)
    # An older record has no uuid of the group; if LVM shows the disk, the group is there, whatever
    # its name is now.
    return of_volume(disk.snapshot if disk.snapshot.vg_uuid else disk.volume, report)


def of_volume(ref: LvRef, report: Report) -> Absence | None:
    """Return why a volume's group is out of reach; None when it is not."""
    if report.lv_of(ref) is not None:
        return None
    heirs = report.heirs(ref) if ref.vg_uuid else ()
    if report.shows(ref):
        return _of_parted(ref, heirs)
    meant = ref.vg_uuid or ref.vg
    known = [group for group in report.groups or () if meant in (group.name, group.uuid)]
    if not known:
        return Absence(
            group=ref.vg,
            why="is not visible to LVM",
            remedy="bring its storage back (log in, as with `iscsiadm -m node --login`; repair the "
            "path; is the device in `lvmdevices`?) until `vgs` shows it"
            + _or_it_became(ref, heirs),
        )
    full = [group for group in known if group.volumes]
    return _of_silent(full[0]) if full else _of_parted(ref, heirs)


def _of_parted(ref: LvRef, heirs: tuple[LogicalVolume, ...]) -> Absence | None:
    """Return why a volume is out of reach whose group is there, but another group has its uuid."""
    if not heirs:
        return None
    heir = heirs[0]
    return Absence(
        group=ref.vg,
        why=f"lacks a volume, which {heir.vg} has by its uuid",
        remedy=f"if {heir.vg} was split off and is no copy (vgimportclone): "
        f"{_saying_so(ref, heir)}; if it is a copy, hide it from LVM (lvmdevices(8))",
    )


def _or_it_became(ref: LvRef, heirs: tuple[LogicalVolume, ...]) -> str:
    """Say what to do if the group is gone because it was merged into another."""
    if not heirs:
        return ""
    return (
        f"; if it was merged into {heirs[0].vg} (vgmerge), and that is not a copy of it "
        f"(vgimportclone): {_saying_so(ref, heirs[0])}"
    )


def _saying_so(ref: LvRef, heir: LogicalVolume) -> str:
    return f"vgchange --addtag {argv.became_tag(ref.vg_uuid, heir.vg_uuid)} {heir.vg}"


def _of_partial(volume: LogicalVolume) -> Absence | None:
    """Return why a volume is out of reach that lacks a part, or is tied to one that does."""
    if volume.health != _PARTIAL:
        return None
    return Absence(group=volume.vg, why="lacks physical volumes", remedy=making_whole(volume.vg))


def making_whole(vg: str) -> str:
    """Say what to do about a group that lacks physical volumes.

    A disk counts as partial when a thick snapshot of it is, and every thin volume of a pool on a
    RAID that lacks a leg.  `vgreduce --removemissing --force` removes all of those, though not a
    byte of them need be lost (lvm2, metadata.c: _lv_each_dependency; vgreduce.c).
    """
    return (
        f"bring them back, then: vgextend --restoremissing {vg} DEVICE; if they are lost for good, "
        f"`lvs -a -o+devices {vg}` shows what had a part there ([unknown]): lvconvert --repair for "
        "a RAID, lvremove for each of the others; then: vgreduce --removemissing "
        f"{vg} (not with --force: that also removes disks that have lost nothing)"
    )


def _of_silent(group: VolumeGroup) -> Absence:
    """Return why LVM does not show the volumes of a group."""
    why, remedy = "hides its volumes", f"`lvs {group.name}` says why"
    if group.is_exported:
        why, remedy = "is exported", f"vgimport {group.name}"
    elif group.is_shared:
        why = f"is shared with other hosts ({group.lock_type}), and is not locked here"
        remedy = f"vgchange --lockstart {group.name}"
    elif group.system_id:
        why = f"belongs to another host (system ID {group.system_id})"
        remedy = "do this on that host, or take the group over as lvmsystemid(7) says"
    return Absence(group=group.name, why=why, remedy=remedy)
