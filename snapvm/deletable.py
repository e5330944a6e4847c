"""May a snapshot be deleted now?  Questions about its record and one report of LVM's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from snapvm.errors import typed
from snapvm.lvm import argv, away, holders, preflight
from snapvm.lvm.away import Absence
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import DiskRecord, LvUuid, Record
from snapvm.refusals import GroupAway, VolumeRefused

_NAMED = 5
"""How many snapshots a command that is to be typed has at the most."""


def absence(record: Record, report: Report) -> Absence | None:
    """Return why volumes of a record are out of reach; None as well where that is unclear."""
    try:
        return away.of_record(record, report)
    except VolumeRefused:
        return None


def refusal(absent: Absence, records: Sequence[Record]) -> GroupAway:
    """Return the failure for records with volumes out of reach; its hint deletes without them."""
    refs = tuple(record.ref for record in records)
    forget = typed("delete --forget-missing", *refs[:_NAMED])
    return absent.refusal(refs, forget=forget)


def check_reach(record: Record, report: Report) -> None:
    """Raise ``GroupAway`` when volumes of a record may exist that cannot be removed now."""
    absent = away.of_record(record, report)
    if absent is not None:
        raise refusal(absent, [record])


def who_needs(known: Iterable[Record], doomed: Iterable[Record]) -> dict[LvUuid, Record]:
    """Return which of a domain's ``known`` records needs a snapshot, by the snapshot's uuid.

    Those that are ``doomed`` go together, and need nothing.
    """
    going = {(other.domain_uuid, other.id) for other in doomed}
    staying = (other for other in known if (other.domain_uuid, other.id) not in going)
    return {disk.snapshot.uuid: other for other in staying for disk in other.disks}


def check_unneeded(record: Record, needed_by: Mapping[LvUuid, Record], report: Report) -> None:
    """Raise ``VolumeRefused`` when something uses a volume of a record, or is built upon it."""
    for disk in record.disks:
        volume = report.lv_of(disk.snapshot)
        if volume is None:
            continue
        name = str(volume.ref)
        if volume.is_open:
            raise VolumeRefused(
                volume=name,
                why=f"it belongs to {record.ref} and is in use",
                remedy=f"end what uses it ({holders.finding_users(volume.ref)})",
            )
        if volume.uuid in needed_by:
            other = needed_by[volume.uuid].ref
            raise VolumeRefused(
                volume=name,
                why=f"{other} needs it too",
                # Alone that one would be refused as well, since this one needs the same volume.
                remedy=f"if nothing needs that one either: {typed('delete', record.ref, other)}",
            )
        if volume.name == disk.volume.lv:
            raise VolumeRefused(
                volume=name,
                why=f"it belongs to {record.ref} and has the name of disk {disk.target}",
                remedy="if it is not the disk, give it another name with lvrename",
            )
        _require_ours(record, disk, volume)
        preflight.check_removable(report, volume, f"it belongs to {record.ref}, and ")
        preflight.check_nothing_above(volume, report)


def _require_ours(record: Record, disk: DiskRecord, volume: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` for a snapshot of which somebody has made a disk by hand.

    One that has lost our tags is not removed anyway.
    """
    is_renamed = volume.name != disk.snapshot.lv
    if is_renamed and volume.is_writable and argv.TAG_OURS in volume.tags:
        untagging = argv.untagging(volume.ref, volume.tags)
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"it was {disk.snapshot.lv} of {record.ref}, and has since been renamed and "
            "made writable",
            remedy=f"if it is to stay, remove snapvm's tags from it: {untagging}; if it is not: "
            f"lvchange --permission r {volume.ref}",
        )
