"""Read the arguments that a domain's definition passes to QEMU directly.

In libvirt's XML they are in ``<qemu:commandline>``, and libvirt does not know what they mean
(libvirt, docs/drvqemu, "Pass-through of arbitrary QEMU commands"); nor does libxl know what its
``device_model_args`` mean (xl.cfg(5)).  These are pure functions.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from itertools import pairwise

_ARGUMENT = "./{{{0}}}commandline/{{{0}}}arg".format("http://libvirt.org/schemas/domain/qemu/1.0")
_DEVICE = re.compile("--?device")
_DISK = re.compile(r"--?(drive|blockdev|hd[a-d]|sd|pflash|mtdblock)")
_HAS_PROPERTIES = frozenset({"drive", "blockdev"})
"""The options whose value has properties; the value of the others is a file that QEMU writes to."""
_DRIVELESS = re.compile(r"(?:vhost-(?:user-blk|user-scsi|scsi)|nvdimm|virtio-pmem)(?:-\w+)*")
"""Devices that are disks and have no drive: another process (SPDK) or the kernel serves them, or
they are memory in a file."""
_READS = re.compile(r"--?(?:drive|fw_cfg|smbios|acpitable)")
"""Options whose value may have a file that QEMU reads when it starts: an ISO, what Ignition is to
do, tables of the firmware."""
_READ_ONLY = ("readonly", "read-only", "unarmed")
_TRUE = (True, "on", "yes", "true", "y")
"""What QEMU takes for true (QEMU, qapi/qobject-input-visitor.c and util/qemu-option.c)."""


def arguments(root: ET.Element) -> tuple[str, ...]:
    """Return the words that are added to QEMU's command line."""
    return tuple(argument.get("value", "") for argument in root.iterfind(_ARGUMENT))


def writable_disk(given: Sequence[str]) -> str:
    """Return the option and value that give the domain a writable disk; empty when none does.

    One that is clearly read-only, or a cdrom, does not count.
    """
    for option, value in pairwise((*given, "")):
        found = _DISK.fullmatch(option)
        is_file = found is not None and found[1] not in _HAS_PROPERTIES
        is_driveless = _DEVICE.fullmatch(option) and _DRIVELESS.fullmatch(_model(value))
        if is_file or ((found or is_driveless) and not _is_unchanging(value)):
            return f"{option} {value}".strip()
    return ""


def _model(device: str) -> str:
    """Return what kind of device one is; its name may be left out when it comes first."""
    properties = _properties(device)
    return str(properties.get("driver") or next(iter(properties), ""))


def files(root: ET.Element) -> Iterator[str]:
    """Yield the paths of files that QEMU reads when it starts."""
    for option, value in pairwise((*arguments(root), "")):
        file = _properties(value).get("file") if _READS.fullmatch(option) else None
        if isinstance(file, str) and file.startswith("/"):
            yield file.replace("\0", ",")


def _is_unchanging(value: str) -> bool:
    properties = _properties(value)
    if properties.get("media") == "cdrom":
        return True
    return any(properties.get(name) in _TRUE for name in _READ_ONLY)


def _properties(value: str) -> dict[str, object]:
    """Read the properties of a drive; return none when they are JSON that cannot be parsed."""
    if value.startswith("{"):
        try:
            return dict(json.loads(value))
        except (ValueError, RecursionError):
            return {}
    found: dict[str, object] = {}
    for each in value.replace(",,", "\0").split(","):  # a doubled comma is part of a name
        name, equals, said = each.partition("=")
        found[name] = said if equals else "on"
    return found
