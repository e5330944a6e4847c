"""Who uses a domain's volumes: the domain itself, somebody else, or nobody."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from snapvm.errors import quoted
from snapvm.hypervisor import overlays
from snapvm.hypervisor.base import Hypervisor, Reliance
from snapvm.lvm import device, devicename, holders
from snapvm.lvm.device import UuidOfDevice
from snapvm.lvm.holders import Holder
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import (
    DiskRecord,
    DmUuid,
    Domain,
    DomainState,
    GuestDisk,
    HypervisorKind,
    LvRef,
    OmittedDisk,
    Record,
    VolumeKind,
)
from snapvm.refusals import DiskRefused, DomainRefused, Refused, VolumeRefused

_DETACH = {
    HypervisorKind.LIBVIRT: "virsh detach-disk {} {} --config",
    HypervisorKind.XEN: "xl block-detach {} {}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """A domain as it is now, and the volumes it has."""

    is_off: bool
    volumes: Mapping[DmUuid, Path] | None
    """Its volumes, each with the device by which it names it; None when nobody can say which.

    That is accepted only of a domain that is off, which holds nothing open.
    """
    omitted: tuple[OmittedDisk, ...] = ()
    """What else it has, and is not captured, as far as that is known."""

    def has(self, volume: LogicalVolume) -> bool:
        """Tell whether a volume is among its disks; what is not known is not held against it."""
        return self.volumes is None or volume.dm_uuid in self.volumes

    def misnames(self, volume: LogicalVolume) -> Path | None:
        """Return its name for a thin disk, if that would still mean this volume after a rollback.

        The rollback gives the disk's name to a clone; a name made of a uuid would stay behind.
        """
        name = None if self.volumes is None else self.volumes.get(volume.dm_uuid)
        if name is None or volume.kind is VolumeKind.THICK:
            return None
        return None if devicename.goes_with(name, volume.ref) else name


def of(hypervisor: Hypervisor, domain: Domain, uuid_of_device: UuidOfDevice) -> Occupant:
    """Look which volumes a domain has; raise ``DomainRefused`` when one that is on hides that."""
    is_off = domain.state is DomainState.SHUTOFF
    volumes: dict[DmUuid, Path] = {}
    try:
        drives = hypervisor.drives(domain)
        for disk in drives.disks:
            try:
                volumes[uuid_of_device(disk.device)] = disk.device
            except device.NotAVolume:
                if is_off:  # its volume may have no device now
                    return Occupant(is_off=True, volumes=None)
    except Refused as error:
        if is_off:
            return Occupant(is_off=True, volumes=None)
        raise DomainRefused(
            domain=domain.name,
            why=f"snapvm cannot tell which volumes it uses ({error})",
            remedy="shut it off first; a rollback discards its memory anyway",
        ) from error
    return Occupant(is_off=is_off, volumes=volumes, omitted=drives.omitted)


def others(
    disks: Iterable[GuestDisk],
    replaced: Collection[DmUuid],
    uuid_of_device: UuidOfDevice,
    *,
    is_off: bool,
) -> Iterator[str]:
    """Yield which disks there are besides those that are replaced, as far as that is known."""
    for disk in disks:
        try:
            if uuid_of_device(disk.device) not in replaced:
                yield disk.target
        except device.NotAVolume:
            if not is_off:  # else its volume may have no device now
                yield disk.target


def unbooted(
    hypervisor: Hypervisor,
    booted: Domain,
    volumes: Mapping[str, LogicalVolume],
    uuid_of_device: UuidOfDevice,
) -> tuple[str, ...]:
    """Return which of the volumes, by target, a libvirt domain is not booted with, if known.

    Its owner may have moved a disk since, and given the definition another one in its place.
    """
    if booted.hypervisor is not HypervisorKind.LIBVIRT:
        return ()  # what xl boots it from is not known
    try:
        defined = {uuid_of_device(disk.device) for disk in hypervisor.drives(booted).disks}
    except (Refused, device.NotAVolume):
        return ()
    return tuple(target for target, each in volumes.items() if each.dm_uuid not in defined)


def require_booted(
    record: Record, unbooted: Iterable[str], volumes: Mapping[str, LogicalVolume]
) -> None:
    """Raise ``VolumeRefused`` when a domain would be started without a disk that goes back.

    One that was attached to the running domain alone is in no definition, but in what it has now.
    """
    for target in unbooted:
        ref = volumes[target].ref
        disk = shlex.join([record.domain, str(ref.path), target])
        raise VolumeRefused(
            volume=str(ref),
            why=f"it is disk {target} of {record.ref}, which has no memory, and the definition "
            "that the domain would be started from does not have it",
            remedy=f"add it to the definition: virsh attach-disk {disk} --config (or virsh edit); "
            "then roll back",
        )


def require_held(domain: Domain, volumes: Mapping[str, LogicalVolume]) -> None:
    """Raise ``DiskRefused`` for a domain that is on and does not run on the volume of that name.

    LVM renames below an open device, and the domain runs on: the volume that has its disk's name
    now is another, and its memory knows nothing of that one's contents.
    """
    for target, volume in volumes.items():
        if domain.state.has_memory and not volume.is_open:
            raise DiskRefused(
                domain=domain.name,
                target=target,
                why=f"{volume.ref} is not in use: the domain runs on another volume, which was "
                "renamed while the domain had it open",
                remedy=f"give that volume its name back (`lvs {volume.ref.vg}` shows an o for "
                "those in use), or restart the domain on the volume that has the name now",
            )


def require_at_rest(domain: Domain, volumes: Iterable[LogicalVolume]) -> None:
    """Raise ``VolumeRefused`` when somebody else has a disk of a domain that is off.

    It would be caught in the midst of being written, and be recorded as one that was shut down.
    """
    if domain.state is DomainState.SHUTOFF:
        for volume in volumes:
            require_unused(volume, "the domain is off, and ")


def require_replaceable(
    record: Record, disk: DiskRecord, current: LogicalVolume, occupant: Occupant
) -> None:
    """Raise ``VolumeRefused`` when what has a disk's name now is, or may be, somebody else's.

    A disk that the domain does not have any more may be replaced only while nobody uses it, and
    only for a record with memory, in whose image the domain has it again.  With any other record
    the domain would be started without it, and a volume that another domain has got meanwhile would
    be changed in vain.  A domain that names the disk by a uuid or a number is refused as well: it
    would be started on the former volume.
    """
    if occupant.is_off:
        require_unused(current)
    misnomer = occupant.misnames(current)
    if misnomer is not None and record.memory is None:
        raise VolumeRefused(
            volume=str(current.ref),
            why=devicename.why_not(misnomer),
            remedy=devicename.remedy(current.ref),
        )
    if occupant.has(current):
        return
    require_unused(current, f"the domain no longer has it as {disk.target}, and ")
    if record.memory is None:
        raise VolumeRefused(
            volume=str(current.ref),
            why=f"it is disk {disk.target} of {record.ref}, and the domain does not have it now",
            remedy="attach it to the domain again, then roll back",
        )


def require_named(
    names: Mapping[str, Path],
    volumes: Mapping[str, LogicalVolume],
    uuid_of_device: UuidOfDevice,
) -> None:
    """Raise ``VolumeRefused`` when a name in a memory image does not lead to the disk's volume.

    Both are given by target.  A link in the image may lead elsewhere by now, and a rebuilt record
    has the names of today: the memory would be restored upon another disk, or upon none.
    """
    for target, volume in volumes.items():
        name = names.get(target)
        if name is not None and name.is_absolute() and not _means(name, volume, uuid_of_device):
            raise VolumeRefused(
                volume=str(volume.ref),
                why=f"it is disk {target}, but {name}, as the memory image calls it, is another",
                remedy=f"make {name} lead to it, as it did when the snapshot was taken",
            )


def require_bare(volume: LvRef, holders: Iterable[Holder]) -> None:
    """Raise ``VolumeRefused`` for a volume that something of this host lies on.

    A rollback would leave that on the former thin disk, or have a thick one change below it.
    """
    found = tuple(holders)
    if found:
        lying = ", ".join(str(holder.device) for holder in found)
        remedies = dict.fromkeys(holder.remedy for holder in found)
        raise VolumeRefused(
            volume=str(volume),
            why=f"{lying} of this host is stacked on it, and would not be rolled back with it",
            remedy="unmount whatever is mounted from that, then: " + "; ".join(remedies),
        )


def require_no_more(record: Record, others: Iterable[str]) -> None:
    """Raise ``DomainRefused`` when a rollback without memory would leave disks of two times.

    The domain is booted with ``others``, which it has got since the record was made and which stay
    as they are.  Where memory is restored, it has the disks of then.
    """
    known = {drive.target for drive in record.omitted}
    for target in others:
        if record.memory is None and target not in known:
            detach = _DETACH[record.hypervisor].format(shlex.quote(record.domain), target)
            raise DomainRefused(
                domain=record.domain,
                why=f"it has disk {target}, and {record.ref} was taken without it: its disks would "
                "be from two different times",
                remedy=f"detach {target} for the rollback: {detach}",
            )


def require_no_overlay(
    record: Record,
    forms: Iterable[Domain],
    report: Report,
    uuid_of_device: UuidOfDevice,
) -> None:
    """Raise ``DomainRefused`` for one that has, or is booted with, an overlay on what is replaced.

    An overlay holds changes to just what lies below it: upon anything else the guest would find its
    file systems spoilt, now or at its next start.  ``forms`` are the domain as it is, and as it is
    booted.
    """
    bases = [base for form in forms for base in overlays.bases(form)]
    for disk, volume in replaced(record, report):
        for base in bases:
            if _means(base.device, volume, uuid_of_device):
                raise _overlaid(record, disk, volume, base.target)


def require_nothing_upon(
    record: Record,
    reliances: Iterable[Reliance],
    report: Report,
    uuid_of_device: UuidOfDevice,
) -> None:
    """Raise ``DomainRefused`` when a disk of some domain relies on a volume that is replaced."""
    upon = list(reliances)
    for disk, volume in replaced(record, report):
        for each in upon:
            if _means(each.device, volume, uuid_of_device):
                raise DomainRefused(
                    domain=record.domain,
                    why=f"disk {each.target} of {quoted(each.domain)} {each.tie} {volume.ref}, "
                    f"which is disk {disk.target} of {record.ref}: {each.why}",
                    remedy=each.remedy,
                )


def replaced(record: Record, report: Report) -> Iterator[tuple[DiskRecord, LogicalVolume]]:
    """Yield the disks of a record, each with what has its name now."""
    for disk in record.disks:
        group = group_now(disk, report.lv_of(disk.snapshot))
        volume = report.lv_from_name(group, disk.volume.lv)
        if volume is not None:
            yield disk, volume


def group_now(disk: DiskRecord, snapshot: LogicalVolume | None) -> str:
    """Return the name that the group of a record's disk has now: its snapshot is in the same."""
    if snapshot is None or not disk.volume.vg_uuid:
        return disk.volume.vg
    return snapshot.vg


def _overlaid(
    record: Record, disk: DiskRecord, volume: LogicalVolume, target: str
) -> DomainRefused:
    name = shlex.quote(record.domain)
    return DomainRefused(
        domain=record.domain,
        why=f"its disk {target} is an overlay on {volume.ref} (an external snapshot, say), which "
        f"is disk {disk.target} of {record.ref}: what the overlay holds are changes to that "
        "volume, and to no other",
        remedy=f"merge it while the domain runs: virsh blockcommit {name} {target} --active "
        "--pivot; or discard what is in it: shut the domain off, and name "
        f"{volume.ref.path} in its place, as raw (virsh edit {name})",
    )


def _means(name: Path, volume: LogicalVolume, uuid_of_device: UuidOfDevice) -> bool:
    """Tell whether a name means a volume, which need not have a device."""
    try:
        return uuid_of_device(name) == volume.dm_uuid
    except device.NotAVolume:
        return devicename.goes_with(name, volume.ref)


def require_unused(volume: LogicalVolume, why: str = "") -> None:
    """Raise ``VolumeRefused`` for a volume that something holds open, though not the domain."""
    if volume.is_open:
        raise VolumeRefused(
            volume=str(volume.ref),
            why=f"{why}something other than the domain uses it",
            remedy=f"end that ({holders.finding_users(volume.ref)})",
        )
