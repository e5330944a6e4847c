"""What a `take` or a `rollback` is going to do: decided from facts, before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from snapvm import naming
from snapvm.errors import DiskRefused, NoSpace, RecordUnusable, VolumeRefused
from snapvm.lvm import device
from snapvm.lvm.argv import TAG_OURS, set_tag
from snapvm.lvm.preflight import check_volumes
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.model import (
    Domain,
    DomainState,
    GuestDisk,
    LvRef,
    LvUuid,
    OmittedDisk,
    Record,
    SnapshotId,
    VolumeKind,
)
from snapvm.settings import Settings

IMAGE_SPARE_BYTES = 64 << 20
"""What a memory image holds beside RAM: devices, headers, pages sent twice."""

_NAMES_BY_IDENTITY = ("/dev/disk/", "/dev/dm-", "/dev/block/")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDisk:
    """A disk that is going to be snapshotted."""

    target: str
    volume: LvRef
    kind: VolumeKind
    size_bytes: int
    snapshot_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TakePlan:
    """All that a `take` needs to know; every check has passed."""

    domain: Domain
    id: SnapshotId
    set: str
    named: bool
    note: str
    with_memory: bool
    disks: tuple[PlannedDisk, ...]
    omitted: tuple[OmittedDisk, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The volume groups touched, each once."""
        return tuple(dict.fromkeys(disk.volume.vg for disk in self.disks))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapDisk:
    """A disk that is going to be replaced by a clone of its snapshot."""

    target: str
    snapshot: LvRef
    current: LvRef
    """What has the disk's name now, and will be kept."""
    user_tags: tuple[str, ...]
    size_bytes: int
    kind: VolumeKind
    clone_name: str
    undo_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlan:
    """All that a `rollback` needs to know; every check has passed."""

    record: Record
    domain: Domain
    """As it is now."""
    set: str
    undo_id: SnapshotId
    disks: tuple[SwapDisk, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The volume groups touched, each once."""
        return tuple(dict.fromkeys(disk.current.vg for disk in self.disks))


def resolve(
    domain: Domain,
    disks: Iterable[GuestDisk],
    report: Report,
    uuid_of_device: Callable[[Path], LvUuid],
) -> dict[str, LogicalVolume]:
    """Return the volume under each disk, by target.

    Raises ``DiskRefused`` for a device that is no volume, one named by identity (it would still
    mean the old volume after a rollback has swapped names), and one used twice.
    """
    found: dict[str, LogicalVolume] = {}
    for disk in disks:
        volume = _volume_under(domain, disk, report, uuid_of_device)
        twin = next((name for name, other in found.items() if other.uuid == volume.uuid), None)
        if twin is not None:
            raise DiskRefused(
                domain=domain.name, target=disk.target, why=f"it is the same volume as {twin}"
            )
        found[disk.target] = volume
    return found


def _volume_under(
    domain: Domain,
    disk: GuestDisk,
    report: Report,
    uuid_of_device: Callable[[Path], LvUuid],
) -> LogicalVolume:
    try:
        uuid = uuid_of_device(disk.device)
    except device.NotAVolume as what:
        raise DiskRefused(
            domain=domain.name,
            target=disk.target,
            why=str(what),
            remedy="snapvm captures disks that are whole logical volumes of this host",
        ) from None
    volume = report.lv_from_uuid(uuid)
    if volume is None:
        raise DiskRefused(
            domain=domain.name, target=disk.target, why=f"LVM does not report the volume {uuid}"
        )
    if str(disk.device).startswith(_NAMES_BY_IDENTITY):
        raise DiskRefused(
            domain=domain.name,
            target=disk.target,
            why=f"the domain names it {disk.device}, a name a rollback cannot give to another",
            remedy=f"name it {volume.ref.path} in the domain's configuration",
        )
    return volume


def check_pools(report: Report, volumes: Iterable[LogicalVolume], settings: Settings) -> None:
    """Raise ``VolumeRefused`` when a volume or its pool must not be built upon."""
    check_volumes(
        report,
        volumes,
        data_limit_percent=settings.pool_data_limit_percent,
        metadata_limit_percent=settings.pool_metadata_limit_percent,
    )


def plan_disks(
    volumes: dict[str, LogicalVolume], report: Report, id_: SnapshotId, set_: str
) -> tuple[PlannedDisk, ...]:
    """Name the snapshot of every volume; raise ``VolumeRefused`` when a name is taken."""
    planned = []
    for target, volume in volumes.items():
        name = naming.snapshot_lv(volume.name, id_, set_, volume.vg)
        _require_free(report, volume.vg, name)
        planned.append(
            PlannedDisk(
                target=target,
                volume=volume.ref,
                kind=volume.kind,
                size_bytes=volume.size_bytes,
                snapshot_name=name,
            )
        )
    return tuple(planned)


def _require_free(report: Report, vg: str, name: str) -> None:
    if report.lv_from_name(vg, name) is not None:
        raise VolumeRefused(
            volume=f"{vg}/{name}",
            why="it exists already, and its name is needed",
            remedy="choose another --name, or remove the volume if nothing needs it",
        )


def _user_tags(volume: LogicalVolume) -> tuple[str, ...]:
    return tuple(sorted(tag for tag in volume.tags if not tag.startswith("snapvm")))


def check_image_room(folder: Path, memory_bytes: int) -> None:
    """Raise ``NoSpace`` when the file system below ``folder`` cannot hold a memory image."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    status = os.statvfs(existing)
    free_bytes = status.f_bavail * status.f_frsize
    needed_bytes = memory_bytes + memory_bytes // 20 + IMAGE_SPARE_BYTES
    if free_bytes < needed_bytes:
        raise NoSpace(
            where=str(folder),
            needed=f"{needed_bytes >> 20} MiB for the memory image",
            free=f"{free_bytes >> 20} MiB",
        )


def plan_swaps(
    record: Record, domain: Domain, report: Report, set_: str, undo_id: SnapshotId
) -> tuple[SwapDisk, ...]:
    """Decide, for every disk of a record, what replaces what.

    Raises ``RecordUnusable`` when a snapshot is gone or not the one that was taken, and
    ``VolumeRefused`` for a disk that is missing or used by something else.
    """
    swaps = []
    for disk in record.disks:
        snapshot = report.lv_from_uuid(disk.snapshot.uuid)
        if snapshot is None:
            why = f"its snapshot {disk.snapshot} of {disk.target} is gone"
            raise RecordUnusable(path=record.ref, why=why)
        if not {TAG_OURS, set_tag(record.set)} <= snapshot.tags:
            why = f"{snapshot.ref} does not carry its tags any more"
            raise RecordUnusable(path=record.ref, why=why)
        current = report.lv_from_name(disk.volume.vg, disk.volume.lv)
        if current is None:
            raise VolumeRefused(
                volume=str(disk.volume),
                why=f"there is no such volume, and it is disk {disk.target} of {record.ref}",
                remedy="give the disk its name back with lvrename",
            )
        if current.is_open and domain.state is DomainState.SHUTOFF:
            raise VolumeRefused(
                volume=str(current.ref),
                why="something else than the domain, which is shut off, uses it",
                remedy=f"`fuser -v {current.ref.path}` and `lsblk` find it",
            )
        clone_name = naming.clone_lv(current.name, set_, current.vg)
        undo_name = naming.snapshot_lv(current.name, undo_id, set_, current.vg)
        for name in (clone_name, undo_name):
            _require_free(report, current.vg, name)
        swaps.append(
            SwapDisk(
                target=disk.target,
                snapshot=snapshot.ref,
                current=current.ref,
                user_tags=_user_tags(current),
                size_bytes=current.size_bytes,
                kind=snapshot.kind,
                clone_name=clone_name,
                undo_name=undo_name,
            )
        )
    return tuple(swaps)
