"""What a domain's XML gives to QEMU past libvirt: ``<qemu:commandline>``.

libvirt does not know what is in it (libvirt, docs/drvqemu, "Pass-through of arbitrary QEMU
commands").  Pure: XML in, values out.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

_ARGUMENT = "./{{{0}}}commandline/{{{0}}}arg".format("http://libvirt.org/schemas/domain/qemu/1.0")
_DISK = re.compile(r"--?(drive|blockdev|hd[a-d]|sd|pflash|mtdblock)")
_HAS_PROPERTIES = frozenset({"drive", "blockdev"})
"""The value of the others is a file, which is written to."""
_READ_ONLY = ("readonly", "read-only")
_TRUE = (True, "on", "yes", "true", "y")
"""What QEMU takes for it (QEMU, qapi/qobject-input-visitor.c and util/qemu-option.c)."""


def arguments(root: ET.Element) -> tuple[str, ...]:
    """Return what is added to QEMU's command line."""
    return tuple(argument.get("value", "") for argument in root.iterfind(_ARGUMENT))


def writable_disk(root: ET.Element) -> str:
    """Return the option and the value that give the domain a disk, or an empty text.

    One that is clearly read-only, or a cdrom, is none.
    """
    given = arguments(root)
    for option, value in pairwise((*given, "")):
        found = _DISK.fullmatch(option)
        if found and not (found[1] in _HAS_PROPERTIES and _is_unchanging(value)):
            return f"{option} {value}".strip()
    return ""


def _is_unchanging(value: str) -> bool:
    properties = _properties(value)
    if properties.get("media") == "cdrom":
        return True
    return any(properties.get(name) in _TRUE for name in _READ_ONLY)


def _properties(value: str) -> dict[str, object]:
    """Read the properties of a drive; none of JSON that cannot be read."""
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
