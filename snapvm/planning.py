"""What a `take` or a `rollback` is going to do: decided from facts, before anything is touched."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snapvm import cowsize, naming
from snapvm.lvm import device, devicename, integrity, newname
from snapvm.lvm.argv import TAG_OURS
from snapvm.lvm.device import UuidOfDevice
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.preflight import activating, check_room, check_volumes
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import (
    Domain,
    GuestDisk,
    HypervisorKind,
    LvRef,
    OmittedDisk,
    Record,
    SidePlace,
    SnapshotId,
    VolumeKind,
)
from snapvm.refusals import DiskRefused
from snapvm.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDisk:
    """A disk that is going to be snapshotted."""

    target: str
    volume: LvRef
    kind: VolumeKind
    size_bytes: int
    snapshot_name: str
    store_bytes: int = 0
    """Of a thick snapshot: the size of its store; 0 of a thin one."""
    chunk_bytes: int = 0
    """Of a thick snapshot: how much it copies at a time; 0 of a thin one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakePlan:
    """All that a `take` needs to know; every check has passed."""

    domain: Domain
    id: SnapshotId
    set: str
    order: str
    """See ``Record.order``."""
    named: bool
    note: str
    with_memory: bool
    stop: bool
    """The domain ends instead of running on."""
    sparse: bool
    """Its image is made sparse once it runs again."""
    quiesce: bool
    """The guest's agent freezes its file systems first."""
    side_places: tuple[SidePlace, ...]
    """Where its UEFI variables and its vTPM are."""
    disks: tuple[PlannedDisk, ...]
    omitted: tuple[OmittedDisk, ...]
    versions: dict[str, str]
    """See ``Hypervisor.versions``."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The volume groups touched, each once."""
        return tuple(dict.fromkeys(disk.volume.vg for disk in self.disks))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapDisk:
    """A disk that goes back: a thin one is replaced by a clone, a thick one is written back."""

    target: str
    snapshot: LvRef
    current: LvRef
    """What has the disk's name now, and will be kept."""
    user_tags: tuple[str, ...]
    read_ahead: str
    not_at_boot: bool
    """LVM does not activate it by itself (`lvchange --setautoactivation n`)."""
    is_skipped: bool
    """LVM activates it only when told to ignore its flag (`lvchange --setactivationskip y`)."""
    size_bytes: int
    kind: VolumeKind
    clone_name: str
    """The name of the clone that is going to be the disk, if it is thin."""
    undo_name: str
    """The name of the volume that keeps what is current."""
    store_bytes: int = 0
    """Of a thick disk: the size of the store of the snapshot of what is current."""
    chunk_bytes: int = 0
    """Of a thick disk: how much that snapshot copies at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackPlan:
    """All that a `rollback` needs to know; every check has passed."""

    record: Record
    domain: Domain
    """As it is now."""
    set: str
    undo_id: SnapshotId
    disks: tuple[SwapDisk, ...]
    order: str = ""
    """Of the undo record; see ``Record.order``."""
    others: tuple[str, ...] = ()
    """The other disks of the domain, which stay as they are."""
    omitted: tuple[OmittedDisk, ...] = ()
    """What else the domain has now; nothing of it is kept."""
    unbooted: tuple[str, ...] = ()
    """Disks that go back although the domain's definition does not have them any more."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The volume groups touched, each once."""
        return tuple(dict.fromkeys(disk.current.vg for disk in self.disks))

    @property
    def thin_disks(self) -> tuple[SwapDisk, ...]:
        """The disks that are exchanged for clones."""
        return tuple(disk for disk in self.disks if disk.kind is VolumeKind.THIN)

    @property
    def thick_disks(self) -> tuple[SwapDisk, ...]:
        """The disks that are written back in place."""
        return tuple(disk for disk in self.disks if disk.kind is VolumeKind.THICK)

    @property
    def is_started(self) -> bool:
        """Whether the domain is started afterwards."""
        return is_started(self.domain, self.record)

    @property
    def is_forgotten(self) -> bool:
        """Whether libvirt does not know the domain, so that its image makes a transient one."""
        is_known = bool(self.domain.definition)
        return self.domain.hypervisor is HypervisorKind.LIBVIRT and not is_known


def is_started(domain: Domain, record: Record) -> bool:
    """Tell whether a rollback starts the domain: it was on, and there is an image or a definition.

    A domain that slept, or whose guest had crashed, when it was recorded was on too.
    """
    return record.state.is_on and bool(record.memory or domain.definition)


def resolve(
    domain: Domain,
    disks: Iterable[GuestDisk],
    report: Report,
    uuid_of_device: UuidOfDevice,
) -> dict[str, LogicalVolume]:
    """Return the volume under each disk, by target.

    Raises ``DiskRefused`` for a device that is no volume, for one named by identity, which would
    still mean the old volume after a rollback has swapped names, and for a volume that is used
    twice.
    """
    found: dict[str, LogicalVolume] = {}
    for disk in disks:
        volume = _volume_under(domain, disk, report, uuid_of_device)
        twin = next(
            (name for name, other in found.items() if other.dm_uuid == volume.dm_uuid), None
        )
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
    uuid_of_device: UuidOfDevice,
) -> LogicalVolume:
    try:
        uuid = uuid_of_device(disk.device)
    except device.NotAVolume as what:
        why, remedy = str(what), "snapvm captures disks that are whole logical volumes of this host"
        if idle := _idle(disk.device, report):
            why, remedy = f"{idle.ref} is not active", activating(idle)
        raise DiskRefused(domain=domain.name, target=disk.target, why=why, remedy=remedy) from None
    volume = report.lv_from_dm_uuid(uuid)
    if volume is None:
        path = shlex.quote(str(disk.device))
        raise DiskRefused(
            domain=domain.name,
            target=disk.target,
            why=f"LVM does not report the volume {uuid.lv}",
            remedy=f"`lvs {path}` says why, as when its group has another system ID; if it finds "
            "no such group: is the device in `lvmdevices`, or does a filter in lvm.conf hide it?",
        )
    if not devicename.goes_with(disk.device, volume.ref):
        raise DiskRefused(
            domain=domain.name,
            target=disk.target,
            why=devicename.why_not(disk.device),
            remedy=devicename.remedy(volume.ref),
        )
    return volume


def _idle(name: Path, report: Report) -> LogicalVolume | None:
    """Return the volume that has this name and no device now, because its domain is off."""
    idle = (volume for volume in report.volumes if not volume.is_mapped)
    return next((each for each in idle if devicename.goes_with(name, each.ref)), None)


def check_pools(
    lvm: Lvm,
    report: Report,
    volumes: Iterable[LogicalVolume],
    settings: Settings,
    *,
    sources: Iterable[LogicalVolume] | None = None,
) -> None:
    """Raise ``VolumeRefused`` for the first volume that must not be snapshotted, or kept, now.

    The pools of the ``sources`` get more volumes; when these are left out, they are the volumes.
    """
    volumes = list(volumes)
    integrity.check(report, volumes, lvm.version)
    check_volumes(
        report,
        volumes,
        sources=sources,
        data_limit_percent=settings.pool_data_limit_percent,
        metadata_limit_percent=settings.pool_metadata_limit_percent,
        extend_threshold_percent=lvm.extend_threshold_percent,
    )


def plan_disks(
    volumes: dict[str, LogicalVolume],
    report: Report,
    id_: SnapshotId,
    set_: str,
    settings: Settings,
) -> tuple[PlannedDisk, ...]:
    """Name the snapshot of every volume, and choose the store and the chunk of a thick one.

    Raises ``VolumeRefused`` when a name is taken or too long, and ``NoSpace``.
    """
    planned = []
    for number, (target, volume) in enumerate(volumes.items()):
        name = naming.snapshot_lv(volume.name, id_, set_, volume.vg, number)
        # What a rollback would need has to be possible too.
        for needed in (name, naming.clone_lv(volume.name, set_, volume.vg, number)):
            newname.require_free(report, volume.vg, needed, "choose another --name")
        planned.append(
            PlannedDisk(
                target=target,
                volume=volume.ref,
                kind=volume.kind,
                size_bytes=volume.disk_bytes,
                snapshot_name=name,
                store_bytes=store_bytes(report, volume, settings),
                chunk_bytes=chunk_bytes(report, volume, settings),
            )
        )
    newname.require_distinct((disk.volume.vg, disk.snapshot_name) for disk in planned)
    check_stores(report, volumes.values(), settings)
    return tuple(planned)


def chunk_bytes(report: Report, volume: LogicalVolume, settings: Settings) -> int:
    """Return how much a snapshot of a volume is to copy at a time; 0 for a thin one.

    It copies as much as our other snapshots of the volume.  When the disk is taken back to one of
    them, an older one has nothing to copy then, since it already holds every chunk that is written.
    """
    if volume.kind is VolumeKind.THIN:
        return 0
    ours = (other for other in report.snapshots_of(volume) if TAG_OURS in other.tags)
    return next((other.chunk_bytes for other in ours if other.chunk_bytes), settings.cow_chunk)


def store_bytes(report: Report, volume: LogicalVolume, settings: Settings) -> int:
    """Return how large the store of a snapshot of a volume is to be; 0 for a thin one."""
    if volume.kind is VolumeKind.THIN:
        return 0
    return cowsize.store_bytes(
        volume.size_bytes,
        volume.vg_extent_bytes,
        settings.cow_size,
        chunk_bytes(report, volume, settings),
    )


def check_stores(report: Report, volumes: Iterable[LogicalVolume], settings: Settings) -> None:
    """Raise ``NoSpace`` when a group has no room for the snapshots of the volumes."""
    needed = ((volume.vg, store_bytes(report, volume, settings)) for volume in volumes)
    check_room(report, per_group(needed), settings.group_limit_percent)


def per_group(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Add sizes up by volume group."""
    total: dict[str, int] = {}
    for vg, size_bytes in sizes:
        total[vg] = total.get(vg, 0) + size_bytes
    return total
