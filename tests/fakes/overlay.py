"""A qcow2 image, as far as its header, and a domain that has it for a disk."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER_BYTES = 104


def make_overlay(path: Path, below: str) -> Path:
    """Write what QEMU writes of an overlay (docs/interop/qcow2): what it lies on."""
    name = below.encode()
    head = struct.pack(">4sIQI", b"QFI\xfb", 3, _HEADER_BYTES, len(name))
    path.write_bytes(head.ljust(_HEADER_BYTES, b"\0") + name)
    return path


def disk_xml(image: Path, *, kind: str = "file", device: str = "disk") -> str:
    """Return the definition of a domain with one drive."""
    source = f"<source {'dev' if kind == 'block' else 'file'}='{image}'/>"
    disk = f"<disk type='{kind}' device='{device}'><driver name='qemu' type='qcow2'/>{source}"
    return f"<domain><devices>{disk}<target dev='vda'/></disk></devices></domain>"
