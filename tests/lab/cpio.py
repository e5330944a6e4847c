"""Writes cpio archives in the form ``newc``, the one that Linux unpacks as an initramfs.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One file, folder, symbolic link or device; ``mode`` holds type and permissions."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> Entry:
    """Return an entry for a folder."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, *, executable: bool = False) -> Entry:
    """Return an entry for a regular file."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def link(path: str, target: str) -> Entry:
    """Return an entry for a symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> Entry:
    """Return an entry for a character device."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the archive; parents must come before what they contain."""
    parts: list[bytes] = []
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        parts.append(_header(number, entry))
        parts.append(_padded(entry.data))
    return b"".join(parts)


def _header(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        number,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime: none, so equal content gives equal archives
        len(entry.data),
        0,  # device the file lies on
        0,
        *entry.device,
        len(name),
        0,  # checksum: only for the "crc" form
    )
    head = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(head + name)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
