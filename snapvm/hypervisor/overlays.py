"""Find the images and devices below a domain's disks that are overlays.

An external snapshot (`virsh snapshot-create-as --disk-only`), and many a backup, puts a qcow2 file
over a volume, and the domain writes to the file from then on.  The definition of a domain that is
off does not name the volume below; the header of the file does (QEMU, docs/interop/qcow2).

Only what is known to have another format than raw has such a header: in a raw image all is the
guest's to write, also what looks like one.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import time
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
_RAW = "raw"
_HEAD_BYTES = 4096
"""In so much of an image stand its header and what says the format of the backing file."""
_OLD_VERSION, _OLD_HEADER_BYTES = 2, 72
_LEAST_HEADER_BYTES = 104
_HEADER_LENGTH = slice(100, 104)
_EXTENSION = struct.Struct(">II")
"""Kind and length of each part behind the header; padded to a multiple of 8, the last of kind 0."""
_BACKING_FORMAT = 0xE2792ACA
_LONGEST_NAME_BYTES = 1023
_DEEPEST = 200
"""As many images as libvirt follows (virStorageSource, VIR_STORAGE_MAX_CHAIN_SIZE)."""
_AS_JSON = "json:"
_AGAIN_SECONDS = 0.02
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
    found = chains((Path(drive.source), drive.format) for drive in drives)
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


def chains(images: Iterable[tuple[Path, str]]) -> Mapping[Path, tuple[Path, ...]]:
    """Return the chain below each image, of which the format is given.

    An image that does not answer is left out.
    """
    formats: dict[Path, str] = {}
    for image, format_ in images:
        if formats.get(image, _RAW) == _RAW:
            formats[image] = format_
    return answers.asked(lambda image: tuple(_below(image, formats[image])), formats)


def _below(image: Path, format_: str) -> Iterator[Path]:
    for _ in range(_DEEPEST):
        name, format_of_next = _backing(image)  # of a raw image too: it may not answer
        if format_ == _RAW or not name:
            return
        image, format_ = image.parent / name, format_of_next
        yield image


def _backing(image: Path) -> tuple[str, str]:
    """Return what `_backing_now` does, once there is a descriptor for it.

    Other looks have them all: an overlay that is taken for none would be rolled back below.
    """
    while (told := _backing_now(image)) is None:
        time.sleep(_AGAIN_SECONDS)
    return told


def _backing_now(image: Path) -> tuple[str, str] | None:
    """Return the backing file that a qcow2 image names, and its format; empty for any other file.

    The format is empty where it is not told.  None when too many files are open.  Nothing else than
    a file or a disk is opened, for a watchdog would begin to run.
    """
    try:
        mode = image.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return "", ""
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with open(os.open(image, flags), "rb") as file:
            head = file.read(_HEAD_BYTES)
            magic, version, offset_bytes, size_bytes = _HEADER.unpack_from(head)
            if magic != _MAGIC or not offset_bytes or size_bytes > _LONGEST_NAME_BYTES:
                return "", ""
            file.seek(offset_bytes)
            name = _as_path(os.fsdecode(file.read(size_bytes)))
            return name, _format_told(head[:offset_bytes], version)
    except OSError as error:
        return None if error.errno in (errno.EMFILE, errno.ENFILE) else ("", "")
    except (ValueError, OverflowError, struct.error):
        return "", ""


def _format_told(head: bytes, version: int) -> str:
    """Return the format of the backing file as what stands before its name tells; empty if not."""
    at = _OLD_HEADER_BYTES
    if version != _OLD_VERSION:
        at = max(int.from_bytes(head[_HEADER_LENGTH], "big"), _LEAST_HEADER_BYTES)
    while at + _EXTENSION.size <= len(head):
        kind, size_bytes = _EXTENSION.unpack_from(head, at)
        at += _EXTENSION.size
        if kind == _BACKING_FORMAT:
            return head[at : at + size_bytes].decode(errors="replace")
        if not kind:
            break
        at += -(-size_bytes // 8) * 8
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
