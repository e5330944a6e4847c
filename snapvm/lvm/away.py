"""Volumes that may exist though nothing can be done with them now: their group is away.

The path to a SAN is down, the group is exported, or it belongs to another host: of all these LVM
shows nothing.  So a volume that it does not show is gone only where it shows the volume's group.  A
group is known by its uuid: another may have its name, and one that has volumes of the same uuids
may be a copy.  These are pure questions about one report, which ``Lvm.explained`` has made
complete; without that no group is known to be empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapvm.lvm import argv
from snapvm.lvm.report import LogicalVolume, Report, VolumeGroup
from snapvm.model import DiskRecord, LvRef, Record
from snapvm.refusals import GroupAway

_PARTIAL = "partial"
"""In ``lv_health_status``: it lies on a physical volume that is missing, or its pool does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """Why a volume group, or what was asked for in it, is out of reach."""

    group: str
    why: str
    remedy: str

    def refusal(self, snapshots: Iterable[str], *, forget: str = "") -> GroupAway:
        """Return what to raise for these snapshots; ``forget`` is typed to do without the group."""
        return GroupAway(
            group=self.group,
            why=self.why,
            remedy=self.remedy,
            snapshots=tuple(snapshots),
            forget=forget,
        )


def of_record(record: Record, report: Report) -> Absence | None:
    """Return why a record's volumes cannot be removed now; None when all can, or are gone."""
    return next(filter(None, (of_disk(disk, report) for disk in record.disks)), None)


def within_reach(record: Record, report: Report) -> list[LvRef]:
    """Return those of a record's volumes that can be removed, or are gone."""
    return [disk.snapshot for disk in record.disks if of_disk(disk, report) is None]


def of_disk(disk: DiskRecord, report: Report) -> Absence | None:
    """Return why the snapshot of a disk is out of reach; None when LVM shows it, or it is gone.

    Raises ``VolumeRefused`` when it is not clear which volume it is (``Report.lv_of``).
    """
    volume = report.lv_of(disk.snapshot)
    if volume is not None:
        return _of_partial(volume)
    # Where the uuid of the group is not known, the disk tells whether it has another name by now.
    return of_volume(disk.snapshot if disk.snapshot.vg_uuid else disk.volume, report)


def of_volume(ref: LvRef, report: Report) -> Absence | None:
    """Return why nothing can be said of what is in the group of a volume; None when it is there."""
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
            why="is not there as far as LVM sees",
            remedy="bring its storage back (log in, as with `iscsiadm -m node --login`; mend the "
            "path; is the device in `lvmdevices`?) until `vgs` shows it"
            + _or_it_became(ref, heirs),
        )
    full = [group for group in known if group.volumes]
    return _of_silent(full[0]) if full else _of_parted(ref, heirs)


def _of_parted(ref: LvRef, heirs: tuple[LogicalVolume, ...]) -> Absence | None:
    """Say of a volume that its group is there without it, and another has one of its uuid."""
    if not heirs:
        return None
    heir = heirs[0]
    return Absence(
        group=ref.vg,
        why=f"is without a volume that {heir.vg} has by its uuid",
        remedy="when that was split off and is no copy (vgimportclone): "
        f"{_saying_so(ref, heir)}; when it is one, hide it from LVM (lvmdevices(8))",
    )


def _or_it_became(ref: LvRef, heirs: tuple[LogicalVolume, ...]) -> str:
    """Say what to do where the group is gone because it was merged into another."""
    if not heirs:
        return ""
    return (
        f"; when {heirs[0].vg} is what it has become (vgmerge), and no copy of it "
        f"(vgimportclone): {_saying_so(ref, heirs[0])}"
    )


def _saying_so(ref: LvRef, heir: LogicalVolume) -> str:
    return f"vgchange --addtag {argv.became_tag(ref.vg_uuid, heir.vg_uuid)} {heir.vg}"


def _of_partial(volume: LogicalVolume) -> Absence | None:
    if volume.health != _PARTIAL:
        return None
    return Absence(
        group=volume.vg,
        why="lacks physical volumes",
        remedy="bring them back, then: vgextend --restoremissing; where they are lost for good: "
        f"vgreduce --removemissing --force {volume.vg}",
    )


def _of_silent(group: VolumeGroup) -> Absence:
    """Say why LVM does not show the volumes that are in a group."""
    why, remedy = "hides its volumes", f"`lvs {group.name}` says why"
    if group.is_exported:
        why, remedy = "is exported", f"vgimport {group.name}"
    elif group.lock_type not in ("", "none"):
        why = f"is shared with other hosts ({group.lock_type}), and is not locked here"
        remedy = f"vgchange --lockstart {group.name}"
    elif group.system_id:
        why = f"belongs to another host (system ID {group.system_id})"
        remedy = "let that host have it done, or take the group over as lvmsystemid(7) says"
    return Absence(group=group.name, why=why, remedy=remedy)
