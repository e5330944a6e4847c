"""What the images that a domain has for disks lie on: the devices below a chain of overlays.

An external snapshot (`virsh snapshot-create-as --disk-only`), and many a backup, puts a qcow2 file
upon a volume, and the domain goes on in the file.  The definition of a domain that is off does not
tell of what is below it; the header of the file does (QEMU, docs/interop/qcow2).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapvm.hypervisor import domainxml
from snapvm.hypervisor.domainxml import Drive
from snapvm.model import Domain, GuestDisk, HypervisorKind

_HEADER = struct.Struct(">4sIQI")
"""Magic, version, where the name of the backing file is, and how long it is."""
_MAGIC = b"QFI\xfb"
_LONGEST_NAME_BYTES = 1023
_DEEPEST = 200
"""As many images as libvirt follows (virStorageSource, VIR_STORAGE_MAX_CHAIN_SIZE)."""
_AS_JSON = "json:"
_FILE_NAMES = ("filename", "file.filename")


def bases(domain: Domain) -> Iterator[GuestDisk]:
    """Yield every image or device below the disks of a domain that are overlays, by their target.

    What cannot be read, or is no file of this host, is not followed; xl makes no overlays.
    """
    if domain.hypervisor is HypervisorKind.LIBVIRT and domain.definition:
        for drive in domainxml.drives_of(domain.definition):
            if drive.type in ("file", "block"):
                yield from below(drive, Path(drive.source))


def below(drive: Drive, image: Path) -> Iterator[GuestDisk]:
    """Yield what the image of a drive lies on, if it is one that the domain keeps."""
    if not drive.is_removable:
        for base in _below(image):
            yield GuestDisk(target=drive.target, device=base)


def _below(image: Path) -> Iterator[Path]:
    for _ in range(_DEEPEST):
        name = _backing_name(image)
        if not name:
            return
        image = image.parent / name
        yield image


def _backing_name(image: Path) -> str:
    """Return what a qcow2 image says it lies on; empty for anything else."""
    try:
        # Whatever it is, looking at it must not wait for somebody at its other end.
        with open(os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            magic, _version, offset_bytes, size_bytes = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC or not offset_bytes or size_bytes > _LONGEST_NAME_BYTES:
                return ""
            file.seek(offset_bytes)
            return _as_path(os.fsdecode(file.read(size_bytes)))
    except (OSError, ValueError, OverflowError, struct.error):
        return ""


def _as_path(name: str) -> str:
    """Return the path in a name, which may be all that QEMU needs to know, written as JSON."""
    if not name.startswith(_AS_JSON):
        return name.removeprefix("file:")
    try:
        return next(_file_names(json.loads(name.removeprefix(_AS_JSON))), "")
    except (ValueError, RecursionError):
        return ""


def _file_names(node: Any) -> Iterator[str]:
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        if name in _FILE_NAMES and isinstance(value, str):
            yield value
        yield from _file_names(value)
