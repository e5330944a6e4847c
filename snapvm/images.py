"""Which memory image goes with which hypervisor: the one place that knows of several formats."""

from __future__ import annotations

from pathlib import Path

from snapvm import checksum, compression
from snapvm.compression import Compression
from snapvm.errors import RecordUnusable
from snapvm.hypervisor.base import MemoryImage
from snapvm.memory import libvirtimage
from snapvm.model import HypervisorKind, MemoryRecord, Progress

LIBVIRT_SAVE = "libvirt-save"
XL_SAVE = "xl-save"


def new_image(kind: HypervisorKind, how: Compression = compression.NONE) -> MemoryImage:
    """Return what makes an image for a hypervisor's driver; only libvirt reads compressed ones."""
    if kind is HypervisorKind.LIBVIRT:
        return libvirtimage.Writer(how)
    # heavy: numpy, which libvirt's images do without
    from snapvm.memory.guestimage import PvGuestImage

    return PvGuestImage()


def check(path: Path, memory: MemoryRecord) -> None:
    """Raise ``BadImage`` when this is not the whole image that was recorded."""
    if memory.format == LIBVIRT_SAVE:
        libvirtimage.check(path, memory.size_bytes)
    elif memory.format == XL_SAVE:
        # heavy: numpy, which libvirt's images do without
        from snapvm.memory import xenimage

        xenimage.check(path, memory.size_bytes)
    else:
        why = f"this snapvm does not know memory images of the format {memory.format!r}"
        raise RecordUnusable(path=str(path), why=why)


def check_contents(path: Path, memory: MemoryRecord, progress: Progress) -> None:
    """Read all of the image; raise ``RecordUnusable`` when it is not what was written."""
    if not checksum.is_known(memory.checksum):
        return
    try:
        found = checksum.of_file(path, progress)
    except OSError as error:
        why = f"it cannot be read ({error.strerror})"
        raise RecordUnusable(path=str(path), why=why) from error
    if found != memory.checksum:
        why = f"it has changed since it was taken ({found}, not {memory.checksum})"
        raise RecordUnusable(path=str(path), why=why)


def seal(path: Path, memory: MemoryRecord, *, running: bool) -> None:
    """Make the image itself say whether its domain runs when anyone restores it, if it can."""
    if memory.format == LIBVIRT_SAVE:
        libvirtimage.set_running(path, running)
