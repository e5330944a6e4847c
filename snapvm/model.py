"""Frozen values that all layers share: what a domain, a disk, a volume and a record are.

Nothing here has an effect; a state is an enum, a record is a frozen dataclass, and units stand in
the names (``_bytes``, ``_ms``, ``_seconds``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import NewType, Protocol

DomainUuid = NewType("DomainUuid", str)
SnapshotId = NewType("SnapshotId", str)
LvUuid = NewType("LvUuid", str)
"""LVM's uuid of a volume; a copy of its group (vgimportclone(8)) has volumes of the same uuids."""
VgUuid = NewType("VgUuid", str)


class HypervisorKind(StrEnum):
    """Who runs the domain."""

    LIBVIRT = "libvirt"
    XEN = "xen"


class DomainState(StrEnum):
    """What the domain does now, in libvirt's words (virDomainState)."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shut off"
    CRASHED = "crashed"
    SUSPENDED = "suspended by the guest"
    OTHER = "in transition"

    @property
    def has_memory(self) -> bool:
        """Whether there is memory that can be captured."""
        return self in (DomainState.RUNNING, DomainState.PAUSED)

    @property
    def is_on(self) -> bool:
        """Whether it has not ended, and is not about to; it may sleep, or its guest has crashed."""
        return self not in (DomainState.SHUTOFF, DomainState.OTHER)


class CaptureMethod(StrEnum):
    """How the memory of a libvirt domain is captured; AUTO is the best that works."""

    AUTO = "auto"
    BACKGROUND = "background"
    """QEMU writes memory behind the running guest; the pause holds none of it."""
    PRECOPY = "precopy"
    """QEMU writes memory while the guest runs, the last of it in the pause."""
    LIBVIRT = "libvirt"
    """libvirt's own external snapshot: memory while running, the last of it in the pause."""
    STOP = "stop"
    """QEMU writes all of memory in the pause."""


class ImageFormat(StrEnum):
    """How the memory image of a libvirt domain is laid out; AUTO is PLAIN (docs/restore.md)."""

    AUTO = "auto"
    PLAIN = "plain"
    """QEMU's stream as it came; any libvirt restores it (from QEMU 11.0 on: libvirt 12.1)."""
    SPARSE = "sparse"
    """Each page at its own place, so that several threads restore it (libvirt 11.2)."""


class ForeignPtes(StrEnum):
    """What becomes of page-table entries of a Xen PV guest whose frame is not the guest's."""

    ZERO = "zero"
    """They are zeroed in the image, counted and reported; the guest itself is not changed."""
    REFUSE = "refuse"
    """A guest that has any is not captured."""


class RecordKind(StrEnum):
    """What a record can bring back."""

    FULL = "full"
    """Memory and every disk, of one instant."""
    DISKS = "disks"
    """Every disk of one instant, no memory."""
    UNDO = "undo"
    """The disks that were current before a rollback, no memory."""


class VolumeKind(StrEnum):
    """How LVM makes snapshots of a volume."""

    THIN = "thin"
    THICK = "thick"


class Role(StrEnum):
    """What a volume of ours is for, as its tag ``snapvm.st=`` says."""

    NEW = "new"
    """Made by a `take` that has not committed."""
    OK = "ok"
    """Belongs to a committed record."""
    UNDO = "undo"
    """What was current before a rollback."""
    ROLL = "roll"
    """A clone that is to become the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain as its hypervisor knows it now."""

    name: str
    uuid: DomainUuid
    hypervisor: HypervisorKind
    state: DomainState
    memory_bytes: int
    vcpus: int
    definition: str
    """The hypervisor's own description (libvirt: live XML; xl: JSON)."""
    run: str | None = None
    """Identifies this run of the domain, until the host is booted; None when the domain is off.

    The driver makes it, to be compared only (Xen: the domain's id; libvirt: ``qemurun``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """A writable disk of a domain and the block device under it on the host."""

    target: str
    device: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class OmittedDisk:
    """A part of the domain that is not captured, and why.

    It may be a drive that cannot change (a CD-ROM, a read-only disk), something that belongs to the
    host or to somebody else (a device, a shared folder), or UEFI variables or a TPM of which there
    is no file to copy.  An undo record also names the disks that the rollback left as they were.
    """

    target: str
    why: str
    read_only: bool = False
    """The domain cannot write to it, so nothing is lost.  A drive without a medium counts too."""


class SideKind(StrEnum):
    """The kinds of state that a machine keeps outside its disks while it is off."""

    NVRAM = "nvram"
    """The variables of UEFI firmware, as its flash holds them."""
    VARSTORE = "varstore"
    """The variables of UEFI firmware that has no flash, as QEMU keeps them."""
    TPM = "tpm"
    """The state of an emulated TPM."""


class SideShape(StrEnum):
    """What there is at a `SidePlace`."""

    FILE = "file"
    FOLDER = "folder"
    """Of files."""
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class SidePlace:
    """Where the host keeps state of a `SideKind`."""

    kind: SideKind
    path: Path
    shape: SideShape = SideShape.FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A copy of a file of a `SidePlace`, in the folder of the record."""

    kind: SideKind
    name: str
    """The name of the original on the host."""
    size_bytes: int
    checksum: str

    @property
    def file(self) -> str:
        """The name of the copy."""
        return f"{self.kind}.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LvRef:
    """A logical volume by name and by uuid; a rollback moves names, and the uuid stays."""

    vg: str
    lv: str
    uuid: LvUuid
    vg_uuid: VgUuid = VgUuid("")
    """Empty in what an older snapvm wrote; a group too may get another name (vgrename(8))."""

    def __str__(self) -> str:
        return f"{self.vg}/{self.lv}"

    @property
    def path(self) -> Path:
        """The name LVM promises to keep for users (lvm(8): not /dev/mapper)."""
        return Path("/dev") / self.vg / self.lv


@dataclass(frozen=True, slots=True, kw_only=True)
class DmUuid:
    """The pair of uuids by which device mapper knows a volume; a copied group gets a new one."""

    vg: VgUuid
    lv: LvUuid


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """One disk of a record: the volume the domain uses and the snapshot that belongs to it."""

    target: str
    volume: LvRef
    snapshot: LvRef
    kind: VolumeKind
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """The memory image of a record, beside it in the same folder."""

    file: str
    format: str
    size_bytes: int
    checksum: str = ""
    """Of the whole file, as ``checksum.of_file`` gives it; empty in records of older versions."""
    foreign: dict[str, int] = field(default_factory=dict)
    """Xen PV: how many page-table entries were zeroed because the domain did not own their frame,
    for each kind of frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPart:
    """A named stretch of the pause, in milliseconds from its beginning."""

    name: str
    start_ms: float
    duration_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the domain stood still and what filled that time."""

    pause_ms: float
    total_ms: float
    parts: tuple[WindowPart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A snapshot: what ``snapshot.json`` holds.  A record that exists is complete."""

    id: SnapshotId
    set: str
    """Twelve hexadecimal digits that name this snapshot in LVM tags."""
    kind: RecordKind
    created: str
    """The instant of the window: UTC, ISO 8601."""
    named: bool
    """The user chose the id; `prune` leaves it alone."""
    note: str
    domain: str
    domain_uuid: DomainUuid
    hypervisor: HypervisorKind
    state: DomainState
    """What the domain did when it was captured, and does again after a rollback."""
    memory_bytes: int
    vcpus: int
    capture: str
    """How memory was captured, and why that way."""
    memory: MemoryRecord | None
    disks: tuple[DiskRecord, ...]
    omitted: tuple[OmittedDisk, ...]
    timing: Timing
    written_bytes: int
    """How much of the disk the memory image takes, which may have holes."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the hypervisor's parts, by their names; what else the memory depends on is beside them."""
    quiesced: bool = False
    """The guest's file systems were frozen: the disks can be used without the memory, and a guest
    that is restored from memory has to be thawed."""
    side_files: tuple[SideFile, ...] = ()
    """UEFI variables and the state of a vTPM, of the same instant."""
    order: str = ""
    """Sorts the record in place of ``created`` where the host's clock had been set back."""

    @property
    def place(self) -> tuple[str, str]:
        """A key by which records of a domain sort in the order they were made."""
        return self.order or self.created, self.id

    @property
    def ref(self) -> str:
        """``dom@id``, as users write it."""
        return f"{self.domain}@{self.id}"


def moment(text: str) -> datetime | None:
    """Return the time, in UTC, that ``Record.created`` or ``order`` tells; None when none."""
    try:
        when = datetime.fromisoformat(text)
        return when.replace(tzinfo=when.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


class Progress(Protocol):
    """What long work tells its progress to; the CLI draws it, tests ignore it."""

    def phase(self, text: str) -> None:
        """Say that another step begins."""

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Say how much of the step is done; ``total_bytes`` is 0 when the total is not known."""


class Silent:
    """Progress that nobody looks at."""

    def phase(self, text: str) -> None:
        """Ignore it."""

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Ignore it."""
