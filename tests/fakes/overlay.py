"""A qcow2 image, as far as its header, and a domain that has it for a disk."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER_BYTES = 104
_OLD_HEADER_BYTES = 72


def make_overlay(path: Path, below: str, *, format_below: str = "", version: int = 3) -> Path:
    """Write what QEMU writes of an overlay (docs/interop/qcow2): what it lies on."""
    name, told = below.encode(), format_below.encode()
    head_bytes = _HEADER_BYTES if version == 3 else _OLD_HEADER_BYTES
    extensions = struct.pack(">II", 0x6803F857, 3) + b"abc".ljust(8, b"\0")
    if told:
        extensions += struct.pack(">II", 0xE2792ACA, len(told)) + told.ljust(8, b"\0")
    extensions += bytes(8)
    name_at = head_bytes + len(extensions)
    head = struct.pack(">4sIQI", b"QFI\xfb", version, name_at, len(name)).ljust(head_bytes, b"\0")
    if version == 3:
        head = head[:100] + struct.pack(">I", head_bytes)
    path.write_bytes(head + extensions + name)
    return path


def disk_xml(
    image: Path, *, kind: str = "file", device: str = "disk", format_: str = "qcow2"
) -> str:
    """Return the definition of a domain with one drive."""
    source = f"<source {'dev' if kind == 'block' else 'file'}='{image}'/>"
    disk = f"<disk type='{kind}' device='{device}'><driver name='qemu' type='{format_}'/>{source}"
    return f"<domain><devices>{disk}<target dev='vda'/></disk></devices></domain>"
