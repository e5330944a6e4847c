"""QEMU's migration streams built by hand, and a reader of sparse images that shares no code."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from snapvm.memory import libvirtimage

PAGE = 4096
ZERO, SIZE, DATA, EOS, CONTINUE = 2, 4, 8, 16, 32
DESCRIPTION = json.dumps(
    {"configuration": {"vmsd_name": "configuration"}, "page_size": PAGE, "devices": []}
).encode()
PAGE_SIZE_PART = b"\5\x1econfiguration/target-page-bits\0\0\0\1\0\0\0\x0c"
"""As QEMU writes it of each ARM machine: pages of 2**12 bytes."""
DEVICES = b"\4" + struct.pack(">I", 7) + b"\3rtc" + bytes(range(200)) + b"\x7e\0\0\0\7"


@dataclass(frozen=True)
class Entry:
    """A page as a PART record has it: zero when ``data`` is empty."""

    block: str
    number: int
    data: bytes = b""


@dataclass(frozen=True)
class Stream:
    """A stream; each field can be given wrongly."""

    blocks: tuple[tuple[str, int], ...] = (("pc.ram", 64 << 12), ("pc.bios", 4 << 12))
    records: tuple[tuple[Entry, ...], ...] = ()
    configuration: bytes = b""
    total_bytes: int | None = None
    rest: bytes = DEVICES + b"\0\6" + struct.pack(">I", len(DESCRIPTION)) + DESCRIPTION

    def encode(self) -> bytes:
        """Return its bytes."""
        total = sum(length for _, length in self.blocks)
        total = total if self.total_bytes is None else self.total_bytes
        text = b"QEVM" + struct.pack(">I", 3)
        text += b"\7" + struct.pack(">I", 5) + b"pc-10" + self.configuration
        text += b"\1" + struct.pack(">I", 2) + b"\3ram" + struct.pack(">IIQ", 0, 4, total | SIZE)
        for name, length in self.blocks:
            text += named(name) + struct.pack(">Q", length)
        text += struct.pack(">Q", EOS) + footer(2)
        return text + b"".join(encoded(entries) for entries in self.records) + self.rest

    def having(self, *entries: Entry) -> Stream:
        """Return one more record with these pages."""
        return replace(self, records=(*self.records, entries))


def encoded(entries: Sequence[Entry], *, kind: int = 2) -> bytes:
    """Return a PART record."""
    text = bytearray([kind]) + struct.pack(">I", 2)
    block = ""
    for entry in entries:
        flags = (DATA if entry.data else ZERO) | (CONTINUE if entry.block == block else 0)
        text += struct.pack(">Q", entry.number * PAGE | flags)
        text += b"" if entry.block == block else named(entry.block)
        text += entry.data or b"\0"
        block = entry.block
    return bytes(text + struct.pack(">Q", EOS) + footer(2))


def named(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def footer(section: int) -> bytes:
    return b"\x7e" + struct.pack(">I", section)


def filled(seed: int) -> bytes:
    """Return a page that no other seed has."""
    return struct.pack(">Q", seed + 1) * (PAGE // 8)


GOOD = Stream().having(
    *(Entry("pc.ram", number, filled(number)) for number in (5, 6, 7, 1)),
    *(Entry("pc.ram", number) for number in range(8, 60)),
    Entry("pc.bios", 3, filled(77)),
    Entry("pc.bios", 2),
    Entry("pc.ram", 0, bytes(PAGE)),
)


def save(
    path: Path, stream: bytes, format_: int = libvirtimage.FORMAT_RAW, *, order: str = "<"
) -> Path:
    """Write a libvirt save image around a stream."""
    head = struct.pack(f"{order}16s5I56x", b"LibvirtQemudSave", 2, 100, 1, format_, 0)
    path.write_bytes(head + b"<domain/>".ljust(100, b"\0") + stream)
    return path


@dataclass(frozen=True)
class Sparse:
    """What a sparse image holds: the pages whose bit is set, and what stands behind memory."""

    pages: dict[tuple[str, int], bytes]
    rest: bytes
    capabilities: tuple[str, ...]
    pages_at: dict[str, int]
    names_page_size: bool


def read_sparse(path: Path) -> Sparse:
    """Read a sparse image as QEMU does: block by block, each at the offsets its header gives."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return _read_sparse(data)


def _read_sparse(data: mmap.mmap) -> Sparse:
    magic, _, length, _, format_, _ = struct.unpack_from("<16s5I", data)
    assert (magic, format_) == (b"LibvirtQemudSave", 6)
    at = 92 + length
    assert data[at : at + 8] == b"QEVM\0\0\0\3"
    name_length = struct.unpack_from(">I", data, at + 9)[0]
    at += 13 + name_length
    names_page_size = data[at : at + len(PAGE_SIZE_PART)] == PAGE_SIZE_PART
    at += len(PAGE_SIZE_PART) if names_page_size else 0
    head = b"\5\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\x0amapped-ram"
    assert data[at : at + len(head)] == head
    at += len(head)
    assert data[at : at + 17] == b"\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4"
    left = struct.unpack_from(">Q", data, at + 17)[0] & ~4095
    at += 25
    pages, starts = {}, {}
    while left:
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + data[at]
        used, version, size, bitmap_at, pages_at = struct.unpack_from(">QIQQQ", data, at)
        assert (version, size) == (1, PAGE)
        assert bitmap_at == at + 36 and pages_at % (1 << 20) == 0
        for number in range(used // PAGE):
            if data[bitmap_at + number // 8] >> number % 8 & 1:
                begin = pages_at + number * PAGE
                pages[name, number] = data[begin : begin + PAGE]
        starts[name] = pages_at
        at = pages_at + used
        left -= used
    assert data[at : at + 13] == struct.pack(">Q", EOS) + footer(2)
    return Sparse(
        pages=pages,
        rest=data[at + 13 :],
        capabilities=("mapped-ram",),
        pages_at=starts,
        names_page_size=names_page_size,
    )
