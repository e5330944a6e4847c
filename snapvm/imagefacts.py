"""What a memory image tells of its domain, for a record that has to be made anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapvm import durable, recordfolder
from snapvm.failures import StorageFailed
from snapvm.hypervisor import domainxml, sidexml
from snapvm.imageformats import LIBVIRT_FILE, LIBVIRT_SAVE, LIBVIRT_SPARSE, XL_FILE, XL_SAVE
from snapvm.memory import libvirtimage
from snapvm.model import DomainState, HypervisorKind, MemoryRecord, OmittedDisk
from snapvm.refusals import BadImage, Refused

log = logging.getLogger(__name__)

_NOT_UNDERSTOOD: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,  # a number without end
    RecursionError,
)
"""What it raises to read a configuration that is no JSON, or not as libxl writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What stands before the memory itself."""

    memory: MemoryRecord
    written_bytes: int
    """See ``Record.written_bytes``."""
    hypervisor: HypervisorKind
    domain: str
    domain_uuid: str
    state: DomainState
    memory_bytes: int
    vcpus: int
    devices: Mapping[str, Path]
    """The disks that the domain writes to, and how it names each; empty when that is not told."""
    omitted: tuple[OmittedDisk, ...] = ()

    @property
    def targets(self) -> frozenset[str]:
        """The disks alone."""
        return frozenset(self.devices)


def look(folder: Path) -> ImageFacts | None:
    """Return what the image in a snapshot's folder tells; None when there is none.

    Raises ``StorageFailed``, and ``BadImage`` for one that is not whole; of a compressed one
    nobody sees that it was cut short.
    """
    path = _image_in(folder)
    if path is None:
        return None
    _require_end(path)
    return _told_by(path)


def _image_in(folder: Path) -> Path | None:
    names = recordfolder.listed(folder)
    return next((folder / name for name in (LIBVIRT_FILE, XL_FILE) if name in names), None)


def _require_end(path: Path) -> None:
    """Raise ``BadImage`` for an image that has been cut short."""
    # heavy: numpy, which libvirt's images do without
    from snapvm.memory import savedstream, xenimage

    if path.name == XL_FILE:
        xenimage.require_end(path)
    else:
        savedstream.require_end(path)


def _told_by(path: Path) -> ImageFacts:
    return _of_xl(path) if path.name == XL_FILE else _of_libvirt(path)


def devices(folder: Path) -> Mapping[str, Path]:
    """Return how the image in a snapshot's folder names the disks; nothing where it does not say.

    Whether it can be restored is for others to tell.
    """
    try:
        path = _image_in(folder)
        return {} if path is None else _told_by(path).devices
    except (BadImage, StorageFailed) as error:
        log.info("how an image names its disks is not known: %s", error)
        return {}


def _of_libvirt(path: Path) -> ImageFacts:
    header = libvirtimage.read_header(path)
    definition = libvirtimage.read_definition(path)
    try:
        root = domainxml.parse(definition)
        drives = domainxml.classify("?", definition, Path)
        omitted = (*drives.omitted, *sidexml.left_out(definition))
    except Refused as error:
        raise BadImage(path=str(path), offset_bytes=0, why=str(error)) from error
    is_sparse = header.format == libvirtimage.FORMAT_SPARSE
    return ImageFacts(
        memory=_memory(path, LIBVIRT_SPARSE if is_sparse else LIBVIRT_SAVE),
        written_bytes=_written_bytes(path),
        hypervisor=HypervisorKind.LIBVIRT,
        domain=root.findtext("name", ""),
        domain_uuid=root.findtext("uuid", ""),
        state=DomainState.RUNNING if header.was_running else DomainState.PAUSED,
        memory_bytes=_number(root.findtext("memory", "0")) << 10,  # libvirt tells KiB
        vcpus=_number(root.findtext("vcpu", "0")),
        devices={disk.target: disk.device for disk in drives.disks},
        omitted=omitted,
    )


def _of_xl(path: Path) -> ImageFacts:
    # heavy: numpy, which libvirt's images do without
    from snapvm.memory import xenimage

    with xenimage.open_image(path) as image:
        text, offset_bytes = image.config, image.config_offset_bytes
    try:
        config: dict[str, Any] = json.loads(text)
        c_info, b_info = config["c_info"], config["b_info"]
        drives = config.get("disks", [])
        return ImageFacts(
            memory=_memory(path, XL_SAVE),
            written_bytes=_written_bytes(path),
            hypervisor=HypervisorKind.XEN,
            domain=str(c_info["name"]),
            domain_uuid=str(c_info.get("uuid", "")),
            state=DomainState.RUNNING,
            memory_bytes=int(b_info.get("target_memkb", 0)) << 10,
            vcpus=int(b_info.get("max_vcpus", 0)),
            devices={
                str(disk["vdev"]): Path(str(disk.get("pdev_path", "")))
                for disk in drives
                if not _unchanging(disk)
            },
            omitted=tuple(
                OmittedDisk(target=str(disk["vdev"]), why=_unchanging(disk), read_only=True)
                for disk in drives
                if _unchanging(disk)
            ),
        )
    except _NOT_UNDERSTOOD as error:
        why = f"its configuration cannot be read ({error!r})"
        raise BadImage(path=str(path), offset_bytes=offset_bytes, why=why) from error


def _unchanging(disk: dict[str, Any]) -> str:
    """Say why a drive was not captured; libxl leaves out what is false."""
    if disk.get("is_cdrom"):
        return "a cdrom drive"
    return "" if disk.get("readwrite") else "read-only"


def _memory(path: Path, format_: str) -> MemoryRecord:
    with durable.failing_as_storage(path):
        size_bytes = path.stat().st_size
    return MemoryRecord(file=path.name, format=format_, size_bytes=size_bytes)


def _written_bytes(path: Path) -> int:
    with durable.failing_as_storage(path):
        return durable.bytes_on_disk(path)


def _number(text: str) -> int:
    try:
        return max(int(text), 0)
    except ValueError:  # of thousands of digits too
        return 0
