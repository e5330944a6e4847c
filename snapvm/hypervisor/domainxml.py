"""Read the drives of a libvirt domain from its XML, and decide which can be captured.

These are pure functions of the XML (libvirt, docs/formatdomain, "Hard drives, floppy disks,
CDROMs").
"""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from snapvm.hypervisor import qemuarguments
from snapvm.hypervisor.base import Drives
from snapvm.model import GuestDisk, OmittedDisk
from snapvm.refusals import DiskRefused, DomainRefused

VolumePath = Callable[[str, str], Path]
"""Takes the names of a pool and a volume; returns the volume's path on the host."""

AGENT_CHANNEL = "org.qemu.guest_agent.0"
"""The name by which libvirt and QEMU's guest agent find each other."""

_PAST_QEMU = re.compile(r"[\w-]*(?:vhost-?user|vdpa|virtiofs)[\w-]*")
"""Kinds of devices that others than QEMU serve; ``vhost`` alone is served by the kernel."""
_REMOVABLE = frozenset({"cdrom", "floppy"})
_MEMORY_FILES = ("nvdimm", "virtio-pmem")
"""Models of memory that keep their contents, as a disk does."""
_UNSAVED = (
    ("an emulated NVMe disk", "disk/target[@bus='nvme']", (11, 0)),
    ("a sound card on USB", "sound[@model='usb']", (11, 0)),
    ("a virtio sound card", "sound[@model='virtio']", (11, 0)),
    ("a network card on USB", "interface/model[@type='usb-net']", (11, 0)),
    ("a serial port on USB", "serial/target[@type='usb-serial']", (11, 0)),
    ("a virtio crypto device", "crypto", (11, 0)),
    ("an input device of this host (passthrough)", "input[@type='passthrough']", (11, 0)),
    ("an AMD IOMMU", "iommu[@model='amd']", (10, 1)),
)
"""What QEMU does not save, where libvirt's XML has it, and the release since which QEMU may: older
ones surely do not (`unmigratable` in its hw/), and say so only when they are to begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One ``<disk>`` element, reduced to what the decision needs."""

    target: str
    type: str
    device: str
    source: str
    pool: str
    format: str
    readonly: bool
    shareable: bool
    transient: bool
    job: str
    chained: bool
    sliced: bool
    """Only a part of the source is the disk (``slice``)."""
    startup: str
    """What libvirt does when the source is missing (``startupPolicy``); empty: refuse to start."""

    @property
    def is_removable(self) -> bool:
        """Whether it is a drive with a medium that can be taken out."""
        return self.device in _REMOVABLE

    @property
    def is_captured(self) -> bool:
        """Whether it is captured, or its domain is refused; a medium in a drive is left out."""
        return not (self.is_removable or self.readonly)


def parse(definition: str) -> ET.Element:
    """Read a domain's XML; raise ``DomainRefused`` when it cannot be parsed."""
    try:
        return ET.fromstring(definition)
    except ET.ParseError as error:
        raise DomainRefused(domain="?", why=f"its XML cannot be read ({error})") from None


def drives_of(definition: str) -> tuple[Drive, ...]:
    """Return all drives of a domain, in the order of its XML."""
    return tuple(_drives(parse(definition)))


def _drives(root: ET.Element) -> Iterator[Drive]:
    return map(_drive, root.iterfind("./devices/disk"))


def _drive(disk: ET.Element) -> Drive:
    source = disk.find("source")
    attributes = {} if source is None else source.attrib
    driver = disk.find("driver")
    mirror = disk.find("mirror")
    backing = disk.find("backingStore")
    target = disk.find("target")
    kind = disk.get("type", "")
    return Drive(
        target="?" if target is None else target.get("dev", "?"),
        type=kind,
        device=disk.get("device", "disk"),
        source=attributes.get({"block": "dev", "volume": "volume"}.get(kind, "file"), ""),
        pool=attributes.get("pool", ""),
        format="raw" if driver is None else driver.get("type", "raw"),
        readonly=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        transient=disk.find("transient") is not None,
        job="" if mirror is None else mirror.get("job", "copy"),
        chained=backing is not None and backing.find("source") is not None,
        sliced=source is not None and source.find("slices/slice") is not None,
        startup=attributes.get("startupPolicy", ""),
    )


def classify(domain: str, definition: str, volume_path: VolumePath) -> Drives:
    """Sort the drives into those to capture and those that cannot change.

    Raises ``DiskRefused`` for the first drive that is neither, with what to do about it, and
    ``DomainRefused`` for a disk that only QEMU knows.
    """
    disks: list[GuestDisk] = []
    omitted: list[OmittedDisk] = []
    root = parse(definition)
    for drive in _drives(root):
        if not drive.is_captured:
            fixed = drive.readonly or drive.device == "cdrom" or not drive.source
            omitted.append(OmittedDisk(target=drive.target, why=_why_not(drive), read_only=fixed))
            continue
        _refuse(domain, drive)
        device = (
            volume_path(drive.pool, drive.source) if drive.type == "volume" else Path(drive.source)
        )
        disks.append(GuestDisk(target=drive.target, device=device))
    _refuse_hidden(domain, root)
    omitted += _unchanging_memory(domain, root)
    omitted += _of_the_host(root)
    if not disks:
        raise DomainRefused(
            domain=domain,
            why="it has no disk that could be captured",
            remedy="snapvm captures disks that are logical volumes",
        )
    return Drives(disks=tuple(disks), omitted=tuple(omitted))


def _refuse_hidden(domain: str, root: ET.Element) -> None:
    """Raise ``DomainRefused`` for a disk that libvirt does not know."""
    hidden = qemuarguments.writable_disk(qemuarguments.arguments(root))
    if hidden:
        raise DomainRefused(
            domain=domain,
            why=f"a disk on QEMU's command line ({hidden}) cannot be captured",
            remedy="make it a <disk> that is a logical volume, or remove it from "
            f"<qemu:commandline>: virsh edit {shlex.quote(domain)}",
        )


def _unchanging_memory(domain: str, root: ET.Element) -> Iterator[OmittedDisk]:
    """Yield the memory devices in files of the host that the domain cannot write to.

    Raises ``DiskRefused`` for a writable one, which is a disk to the guest: the snapshot would not
    have its file, and a restore of old memory would overwrite it.
    """
    for model in _MEMORY_FILES:
        found = root.iterfind(f"./devices/memory[@model='{model}']")
        for number, memory in enumerate(found):
            target = f"{model}{number}"
            if memory.find("target/readonly") is None:
                path = memory.findtext("source/path", "").strip() or "(none)"
                raise DiskRefused(
                    domain=domain,
                    target=target,
                    why=f"it is memory in {path}, not a logical volume",
                    remedy="move its contents to a logical volume that is a <disk>, and remove the "
                    f"<memory model='{model}'>: virsh edit {shlex.quote(domain)}",
                )
            yield OmittedDisk(target=target, why="read-only", read_only=True)


def _of_the_host(root: ET.Element) -> Iterator[OmittedDisk]:
    """Yield the devices and folders of the host on which the domain may keep data."""
    for number, device in enumerate(root.iterfind("./devices/hostdev")):
        why = f"a device of this host ({device.get('type', '?')}), with whatever is on it"
        yield OmittedDisk(target=f"hostdev{number}", why=why)
    for number, shared in enumerate(root.iterfind("./devices/filesystem")):
        source = shared.find("source")
        folder = "" if source is None else source.get("dir", "")
        why = f"a folder of this host {folder}".strip()
        fixed = shared.find("readonly") is not None
        yield OmittedDisk(target=f"filesystem{number}", why=why, read_only=fixed)


def _why_not(drive: Drive) -> str:
    """Say why a drive is not captured."""
    if drive.is_removable:
        return f"a {drive.device} drive" + (f" with {drive.source}" if drive.source else ", empty")
    return "read-only"


def _refuse(domain: str, drive: Drive) -> None:
    """Raise ``DiskRefused`` when the drive cannot be captured at one instant with the others."""

    def refused(why: str, remedy: str = "") -> DiskRefused:
        return DiskRefused(domain=domain, target=drive.target, why=why, remedy=remedy)

    name, target = shlex.quote(domain), shlex.quote(drive.target)
    if drive.job:
        raise refused(
            f"a block job ({drive.job}) is running on it",
            f"wait for it, or end it: virsh blockjob {name} {target} --abort",
        )
    if drive.transient:
        raise refused(
            "it is transient: its changes are thrown away when the domain stops",
            f"take <transient/> out of it: virsh edit {name}",
        )
    if drive.shareable:
        raise refused(
            "it is shareable: another domain may write to it during the window",
            f"when no other domain uses it, take <shareable/> out of it: virsh edit {name}",
        )
    if drive.chained:
        raise refused(
            f"it is an overlay ({drive.source}), such as an external snapshot, and its backing "
            "image would not be captured",
            f"merge it while the domain runs: virsh blockcommit {name} {target} --active --pivot",
        )
    source = shlex.quote(drive.source) if drive.type != "volume" and drive.source else "FILE"
    convert = f"qemu-img convert -f {drive.format} -O raw {source} /dev/VG/LV"
    moving = f"({convert}), and name that in its definition, as raw (virsh edit {name})"
    if drive.type == "file":
        raise refused(
            f"it is the file {drive.source or '(none)'}, not a logical volume",
            f"while the domain is off, move it to a logical volume {moving}",
        )
    if drive.type not in ("block", "volume") or not drive.source:
        raise refused(
            f"its source is of type {drive.type!r}, not a logical volume of this host",
            "move it to a logical volume, or take the other disks by other means",
        )
    if drive.sliced:
        raise refused(
            "it is a slice of its volume, and the rest of the volume would be rolled back with it",
            "move it to a volume of its own",
        )
    if drive.format != "raw":
        raise refused(
            f"its volume holds a {drive.format} image",
            f"while the domain is off, convert it into another logical volume {moving}",
        )


def passthrough_devices(definition: str) -> tuple[str, ...]:
    """Return the host devices and file systems whose state lies outside the domain."""
    devices = parse(definition).find("devices")
    if devices is None:
        return ()
    found = [f"hostdev ({dev.get('type', '?')})" for dev in devices.iterfind("hostdev")]
    found += ["a direct interface (VFIO)" for _ in devices.iterfind("interface[@type='hostdev']")]
    found += ["a shared memory device" for _ in devices.iterfind("shmem")]
    found += ["a shared file system" for _ in devices.iterfind("filesystem")]
    found += ["the TPM of this host" for _ in devices.iterfind("tpm/backend[@type='passthrough']")]
    return tuple(found)


def unsaved_devices(definition: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the devices that QEMU does not save, and the release since which it may do so."""
    root = parse(definition)
    for what, where, since in _UNSAVED:
        if root.find(f"./devices/{where}") is not None:
            yield what, since


def cpu_element(definition: str) -> str:
    """Return the ``<cpu>`` of a live domain, without its NUMA cells; empty when it has none."""
    cpu = parse(definition).find("cpu")
    if cpu is None:
        return ""
    for numa in cpu.findall("numa"):
        cpu.remove(numa)
    cpu.tail = None
    return ET.tostring(cpu, encoding="unicode")


def withheld_kib(definition: str) -> int:
    """Return how much memory of virtio-mem devices is neither offered to a guest nor used by it.

    libvirt counts it as the domain's.  QEMU neither reserves nor saves it, and its guest takes it
    when it is offered more.
    """
    if "virtio-mem" not in definition:
        return 0
    withheld = 0
    for target in parse(definition).iterfind("./devices/memory[@model='virtio-mem']/target"):
        size, requested, current = (
            int(text) if re.fullmatch("[0-9]{1,18}", text) else 0
            for text in (target.findtext(n, "").strip() for n in ("size", "requested", "current"))
        )
        withheld += max(0, size - max(requested, current))
    return withheld


def image_label(definition: str) -> str:
    """Return the SELinux label of files that a live domain's QEMU may write; empty without one."""
    return parse(definition).findtext("./seclabel[@model='selinux']/imagelabel", "").strip()


def foreign_memory_writer(definition: str) -> str:
    """Name a device by which others than QEMU write guest memory; empty when there is none.

    Another process (vhost-user, virtiofs) or the host's hardware (vDPA) does that.  QEMU's write
    protection does not catch such writes, and the image would not be of one instant.  The kernel's
    vhost is caught, as QEMU's own writes are.
    """
    root = parse(definition)
    for element in root.iterfind("./devices/*"):
        driver = element.find("driver")
        of_driver = {} if driver is None else driver.attrib
        for kind in (element.get("type", ""), of_driver.get("type", ""), of_driver.get("name", "")):
            if _PAST_QEMU.search(kind):
                return f"its {element.tag} ({kind}) is served past QEMU"
    for argument in qemuarguments.arguments(root):
        found = _PAST_QEMU.search(argument)
        if found:
            return f"a {found[0]} on QEMU's command line is served past QEMU"
    return ""


def has_agent_channel(definition: str) -> bool:
    """Tell whether a domain has the channel on which a guest's agent listens."""
    if not definition:
        return False
    targets = parse(definition).iterfind("./devices/channel/target")
    return any(target.get("name") == AGENT_CHANNEL for target in targets)
