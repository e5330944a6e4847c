"""Read a domain's drives from xenstore, and decide which can be captured.

libxl has a folder for each drive (/libxl/DOMID/device/vbd/N), which names the folder of its backend
(docs/misc/xenstore-paths.pandoc, tools/libs/light/libxl_device.c: libxl__device_generic_add).  The
guest's folder names that too, but a guest may write anything there (XSA-175).  So the guest's
folder is read only for what concerns the guest alone: the grants of its rings.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from snapvm.hypervisor.base import Drives
from snapvm.hypervisor.xenstore import XenStore
from snapvm.model import GuestDisk, OmittedDisk
from snapvm.refusals import DiskRefused, DomainRefused

BLOCK_SCRIPT = "block"
QDISK = "qdisk"
BACKENDS = ("vbd", QDISK)
"""The backends whose disks can be captured: the kernel's, and QEMU."""
_DRIVES = ("vbd", "virtio_disk")
"""The kinds of devices that are drives.  The second are those of virtio, since Xen 4.17, which a
program serves that libxl knows nothing of (libxl_disk.c, libxl__device_from_disk)."""
_RAW = "aio:"
"""What libxl writes before the path of a raw disk that QEMU or tapdisk serves, and alone for an
empty drive (libxl_device.c, libxl__device_disk_string_of_format)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vbd:
    """One virtual block device, reduced to what the decision needs."""

    number: str
    """The name of its folder in xenstore."""
    target: str
    backend: str
    """``vbd`` is the kernel's blkback, ``qdisk`` is QEMU; ``9pfs`` and others are not disks."""
    backend_domid: str
    kind: str
    """``phy`` for a block device, ``file`` for a file behind a loop device."""
    params: str
    node: str
    """The loop device, if there is one."""
    physical: str
    """The number of the device that blkback has open, in hexadecimal: ``fd:5``."""
    script: str
    is_cdrom: bool
    is_read_only: bool

    @property
    def is_captured(self) -> bool:
        """Whether a snapshot has to capture it, because it can change."""
        return not _unchanging(self)

    @property
    def medium(self) -> str:
        """What is in it, as its back end calls that; empty for an empty drive."""
        return self.params.removeprefix(_RAW)

    @property
    def device(self) -> Path:
        """The path of its device or file, as QEMU or the block script reads ``params``."""
        path = Path(self.medium)
        return path if path.is_absolute() else Path("/dev") / path

    @property
    def caches(self) -> tuple[Path, ...]:
        """The devices for which this host's page cache may hold writes that the guest has finished.

        blkback does not use that cache; QEMU and a loop device do.  A drive that the guest cannot
        write to has no such writes, and its medium may be gone.
        """
        if _unchanging(self):
            return ()
        if self.backend == QDISK:
            return (self.device,)
        if self.kind == "file":
            return (Path(self.node), self.device) if self.node else (self.device,)
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What a domain has at one moment."""

    vbds: tuple[Vbd, ...]
    """Its drives, by number."""
    devices: frozenset[str]
    """The kind and the number of each device, drives and all others: ``vif/0``."""


def front_folder(domid: int) -> str:
    """Return the folder in xenstore with the guest's side of its drives."""
    return f"/local/domain/{domid}/device/vbd"


def _devices_folder(domid: int) -> str:
    return f"/libxl/{domid}/device"


def attached(store: XenStore, domid: int) -> Attached:
    """Return all drives of a domain, and which other devices it has."""
    return Attached(vbds=read_vbds(store, domid), devices=devices(store, domid))


def devices(store: XenStore, domid: int) -> frozenset[str]:
    """Return the kind and the number of each device of a domain, connected or not."""
    folder = _devices_folder(domid)
    return frozenset(
        f"{kind}/{number}"
        for kind in store.names(folder)
        for number in store.names(f"{folder}/{kind}")
    )


def vbd_numbers(store: XenStore, domid: int) -> tuple[str, ...]:
    """Return the numbers of all drives of a domain, connected or not."""
    return tuple(path.name for path in _folders(store, domid))


def read_vbds(store: XenStore, domid: int) -> tuple[Vbd, ...]:
    """Return all drives of a domain, by number."""
    found = []
    for folder in sorted(_folders(store, domid), key=lambda each: (len(each.name), each.name)):
        path = store.read(f"{folder}/backend") or ""
        found.append(_vbd(folder.name, path, store.tree(path) if path else {}))
    return tuple(found)


def _folders(store: XenStore, domid: int) -> tuple[PurePosixPath, ...]:
    """Return libxl's folder of each drive, by whose name it is known."""
    kinds = [PurePosixPath(_devices_folder(domid), kind) for kind in _DRIVES]
    return tuple(kind / number for kind in kinds for number in store.names(str(kind)))


def _vbd(number: str, path: str, values: dict[str, str]) -> Vbd:
    parts = path.strip("/").split("/")  # local/domain/BACKEND/backend/KIND/DOMID/NUMBER
    at = parts.index("backend") if "backend" in parts else -1
    return Vbd(
        number=number,
        target=values.get("dev") or number,
        backend=parts[at + 1] if 0 <= at < len(parts) - 1 else "?",
        backend_domid=parts[2] if len(parts) > 2 else "",
        kind=values.get("type", ""),
        params=values.get("params", ""),
        node=values.get("node", ""),
        physical=values.get("physical-device", ""),
        script=Path(values.get("script", BLOCK_SCRIPT)).name,
        is_cdrom=values.get("device-type") == "cdrom",
        is_read_only=values.get("mode") == "r",
    )


def classify(domain: str, vbds: tuple[Vbd, ...]) -> Drives:
    """Sort the drives into those to capture and those that cannot change.

    Raises ``DiskRefused`` for the first one that is neither, with what to do about it.
    """
    disks: list[GuestDisk] = []
    omitted: list[OmittedDisk] = []
    for vbd in vbds:
        why = _unchanging(vbd)
        if why:
            omitted.append(OmittedDisk(target=vbd.target, why=why, read_only=True))
            continue
        _refuse(domain, vbd)
        disks.append(GuestDisk(target=vbd.target, device=vbd.device))
    if not disks:
        raise DomainRefused(
            domain=domain,
            why="it has no disk that could be captured",
            remedy="snapvm captures disks that are logical volumes",
        )
    return Drives(disks=tuple(disks), omitted=tuple(omitted))


def _unchanging(vbd: Vbd) -> str:
    if vbd.is_cdrom:
        return f"a cdrom drive with {vbd.medium}" if vbd.medium else "a cdrom drive, empty"
    return "read-only" if vbd.is_read_only else ""


MOVE = "move it to a logical volume: qemu-img convert -O raw FILE /dev/VG/LV"


def _refuse(domain: str, vbd: Vbd) -> None:
    """Raise ``DiskRefused`` when the drive cannot be captured at one instant with the others."""

    def refused(why: str, remedy: str = "") -> DiskRefused:
        return DiskRefused(domain=domain, target=vbd.target, why=why, remedy=remedy)

    if not vbd.backend_domid:
        raise refused("xenstore names no backend domain of it", "it may be about to be detached")
    if vbd.backend_domid != "0":
        raise refused(f"its backend is domain {vbd.backend_domid}, not this one")
    if vbd.backend == QDISK and not vbd.params.startswith(_RAW):
        raise refused(f"QEMU serves it from an image with a format of its own ({vbd.params})", MOVE)
    if vbd.backend not in BACKENDS or vbd.kind not in ("phy", "file", QDISK):
        raise refused(
            f"it is served by {vbd.backend} ({vbd.params}), which hides the volume from snapvm",
            "let the kernel serve it: backendtype=phy, target=/dev/VG/LV",
        )
    if vbd.params and Path("/dev") not in vbd.device.parents:
        raise refused(f"it is the file {vbd.device}, not a logical volume", MOVE)
    if vbd.backend != QDISK and vbd.script != BLOCK_SCRIPT:
        raise refused(f"its device is set up by the script {vbd.script}, not by Xen's own")
    if not vbd.params:
        raise refused("xenstore does not say which device is behind it")
    if _means_another(vbd):
        raise refused(
            f"{vbd.device} is now a different volume from the one that the domain has open",
            "give the volumes their names back (lvrename), or restart the domain",
        )


def _means_another(vbd: Vbd) -> bool:
    """Tell whether the drive's path leads to another volume by now than the one that is open.

    An open volume can be renamed; blkback keeps its number (drivers/block/xen-blkback/xenbus.c).
    """
    if vbd.backend == QDISK or vbd.kind != "phy" or not vbd.physical:
        return False
    now = number_of(vbd.device)
    return bool(now) and now != vbd.physical.lower()


def number_of(device: Path) -> str:
    """Return a block device's number in xenstore's form; empty when it is not a block device."""
    try:
        status = os.stat(device)
    except OSError:
        return ""
    if not stat.S_ISBLK(status.st_mode):
        return ""
    return f"{os.major(status.st_rdev):x}:{os.minor(status.st_rdev):x}"
