"""Find the images and devices below a domain's disks that are overlays.

An external snapshot (`virsh snapshot-create-as --disk-only`), and many a backup, puts a qcow2 file
over a volume, and the domain writes to the file from then on.  The definition of a domain that is
off does not name the volume below; the header of the file does (QEMU, docs/interop/qcow2).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from snapvm.hypervisor import answers, domainxml, startfiles
from snapvm.hypervisor.domainxml import Drive
from snapvm.model import Domain, GuestDisk, HypervisorKind
from snapvm.refusals import DomainRefused

_HEADER = struct.Struct(">4sIQI")
"""Magic, version, offset and length of the name of the backing file."""
_MAGIC = b"QFI\xfb"
_LONGEST_NAME_BYTES = 1023
_DEEPEST = 200
"""As many images as libvirt follows (virStorageSource, VIR_STORAGE_MAX_CHAIN_SIZE)."""
_AS_JSON = "json:"
_FILE_NAMES = ("filename", "file.filename")


def bases(domain: Domain) -> Iterator[GuestDisk]:
    """Yield every image or device below the disks of a domain, each with the disk's target.

    An image that cannot be read, or is not on this host, is not followed; xl makes no overlays.
    Raises ``DomainRefused`` for a disk that does not answer, because a start would wait for it.
    """
    if domain.hypervisor is not HypervisorKind.LIBVIRT or not domain.definition:
        return
    drives = [
        drive
        for drive in domainxml.drives_of(domain.definition)
        if drive.type in ("file", "block") and is_kept(drive)
    ]
    found = chains(Path(drive.source) for drive in drives)
    for drive in drives:
        chain = found.get(Path(drive.source))
        if chain is None:
            raise DomainRefused(
                domain=domain.name,
                why=f"its disk {drive.target} does not answer ({drive.source})",
                remedy=startfiles.NO_ANSWER,
            )
        for base in chain:
            yield GuestDisk(target=drive.target, device=base)


def is_kept(drive: Drive) -> bool:
    """Tell whether a drive has a disk, and not a medium that can be taken out."""
    return bool(drive.source) and not drive.is_removable


def chains(images: Iterable[Path]) -> Mapping[Path, tuple[Path, ...]]:
    """Return the chain below each image; an image that does not answer is left out."""
    return answers.asked(lambda image: tuple(_below(image)), images)


def _below(image: Path) -> Iterator[Path]:
    for _ in range(_DEEPEST):
        name = _backing_name(image)
        if not name:
            return
        image = image.parent / name
        yield image


def _backing_name(image: Path) -> str:
    """Return the backing file that a qcow2 image names; empty for any other file."""
    try:
        # O_NONBLOCK: if it is a pipe, opening it must not wait for its writer.
        with open(os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            magic, _version, offset_bytes, size_bytes = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC or not offset_bytes or size_bytes > _LONGEST_NAME_BYTES:
                return ""
            file.seek(offset_bytes)
            return _as_path(os.fsdecode(file.read(size_bytes)))
    except (OSError, ValueError, OverflowError, struct.error):
        return ""


def _as_path(name: str) -> str:
    """Return the path in a backing file's name, which may be QEMU's options in JSON."""
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
