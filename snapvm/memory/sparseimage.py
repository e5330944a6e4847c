"""Convert a libvirt save image into a sparse one, with each page at its own place in the file.

The layout is QEMU's mapped-ram (docs/devel/migration/mapped-ram.rst, migration/ram.c): behind each
block in the list of blocks stand a header, a bitmap of the pages that are in the file, and, from
the next MiB on, room for all pages.  Offsets are those of the file.  Several threads can read such
an image at once, and zero pages are holes.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm import durable
from snapvm.memory import libvirtimage, savedstream
from snapvm.memory.qemuformat import (
    CAPABILITIES,
    MAGIC,
    PAGE_BITS,
    PAGE_BYTES,
    PAGE_SIZE,
    RAM,
    RAM_VERSION,
    Flag,
    Pages,
    RamBlock,
    Section,
    Setup,
)
from snapvm.memory.qemustream import QemuStream
from snapvm.model import Progress

CAPABILITY: Final = b"mapped-ram"
_BLOCK_HEADER: Final = struct.Struct(">IQQQ")
"""Version, size of a page, offset of the bitmap, offset of the pages."""
_PAGES_ALIGNMENT: Final = 1 << 20
_BITMAP_WORD_PAGES: Final = 64
"""QEMU keeps the bitmap in whole 64-bit words."""
_CHUNK_BYTES: Final = 4096
"""How much of a bitmap is in memory at a time: it stands for 128 MiB of the guest."""
_CHUNK_PAGES: Final = _CHUNK_BYTES * 8
KEEP_ZEROS_LIMIT_BYTES: Final = 64 << 20
"""QEMU does not load pages that are not in the bitmap, assuming that they are zero already.  That
is true of memory.  But a block of at most this size may hold something from the start (firmware,
flash, tables for the firmware), so its zero pages are in the bitmap, as holes."""
_TRIED_EVERY_BYTES: Final = 512
_ZEROS: Final = bytes(1 << 20)
_SHARED: Final = "shmmem-"
"""So libvirt calls the memory of a <shmem> (qemu_command.c), which outlives the domain."""


def convert(source: Path, target: Path, progress: Progress) -> int:
    """Write the contents of the image ``source`` as the sparse image ``target``; return its size.

    Raises ``BadImage`` for a source that is damaged or cannot be converted, and ``StorageFailed``;
    the caller removes ``target`` then.  It uses a few megabytes of memory.
    """
    head = libvirtimage.head_as(source, libvirtimage.FORMAT_SPARSE)
    with savedstream.opened(source) as stream, durable.failing_as_storage(target):
        size_bytes = source.stat().st_size
        setup = stream.setup()
        if setup.capabilities:
            raise stream.bad(f"its capability {setup.capabilities[0]} is not understood")
        descriptor = durable.create(target)
        try:
            writer = SparseWriter(descriptor, setup, head)
            for pages in stream.pages():
                writer.add(pages)
                progress.advance(min(stream.offset_bytes, size_bytes), size_bytes)
            writer.end(stream)
            return libvirtimage.mark_whole(descriptor)
        finally:
            os.close(descriptor)


class SparseWriter:
    """Writes the image; raises ``OSError``."""

    def __init__(self, descriptor: int, setup: Setup, head: bytes) -> None:
        self._descriptor = descriptor
        self._section = setup.section
        begin = head + _before_blocks(setup)
        durable.rewrite(descriptor, memoryview(begin), 0)
        self._end = len(begin)
        self._blocks = [self._place(block) for block in setup.blocks]

    def add(self, pages: Pages) -> None:
        """Write pages at their places."""
        block = self._blocks[pages.block.number]
        offsets, data = pages.offsets_bytes, pages.data
        if data is None:
            for begin, end in _runs(offsets):
                self._put_zeros(block, int(offsets[begin]), end - begin)
            return
        zero = _are_zero(data)
        if zero.any():
            for begin, end in _runs(offsets[zero]):
                self._put_zeros(block, int(offsets[zero][begin]), end - begin)
            offsets, data = offsets[~zero], data[~zero]
        for begin, end in _runs(offsets):
            offset_bytes = int(offsets[begin])
            run = np.ascontiguousarray(data[begin:end])
            durable.rewrite(self._descriptor, run.reshape(-1).data, block.pages_at + offset_bytes)
            block.bitmap.put(offset_bytes // PAGE_BYTES, end - begin, present=True)

    def end(self, stream: QemuStream) -> None:
        """Write the rest of the bitmaps, and what follows the memory in the stream."""
        for block in self._blocks:
            block.bitmap.flush()
        footer = struct.pack(">QBI", Flag.EOS, Section.FOOTER, self._section)
        durable.rewrite(self._descriptor, memoryview(footer), self._end)
        self._end += len(footer)
        for piece in stream.rest():
            durable.rewrite(self._descriptor, memoryview(piece), self._end)
            self._end += len(piece)

    def _place(self, block: RamBlock) -> _PlacedBlock:
        """Write the entry of a block in the list; the next entry will follow its pages."""
        entry = _named(block.name.encode("ascii")) + struct.pack(">Q", block.length_bytes)
        bitmap_at = self._end + len(entry) + _BLOCK_HEADER.size
        bitmap_bytes = -(-block.length_bytes // PAGE_BYTES // _BITMAP_WORD_PAGES) * 8
        pages_at = -(-(bitmap_at + bitmap_bytes) // _PAGES_ALIGNMENT) * _PAGES_ALIGNMENT
        entry += _BLOCK_HEADER.pack(1, PAGE_BYTES, bitmap_at, pages_at)
        durable.rewrite(self._descriptor, memoryview(entry), self._end)
        self._end = pages_at + block.length_bytes
        return _PlacedBlock(
            pages_at=pages_at,
            keeps_zeros=block.length_bytes <= KEEP_ZEROS_LIMIT_BYTES or _SHARED in block.name,
            bitmap=_Bitmap(self._descriptor, bitmap_at, bitmap_bytes),
        )

    def _put_zeros(self, block: _PlacedBlock, offset_bytes: int, count: int) -> None:
        """Make pages zero; where nothing was written before they are left as a hole."""
        first = offset_bytes // PAGE_BYTES
        was_written = block.bitmap.put(first, count, present=block.keeps_zeros)
        if was_written and block.keeps_zeros:
            begin, end = offset_bytes, offset_bytes + count * PAGE_BYTES
            for at in range(begin, end, len(_ZEROS)):
                some = memoryview(_ZEROS)[: end - at]
                durable.rewrite(self._descriptor, some, block.pages_at + at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlacedBlock:
    """The place of a block's pages in the file, and its bitmap."""

    pages_at: int
    keeps_zeros: bool
    bitmap: _Bitmap


class _Bitmap:
    """The bitmap of one block; one chunk of it is in memory, the rest in the file."""

    def __init__(self, descriptor: int, at: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self._at = at
        self._size_bytes = size_bytes
        self._chunk = -1
        self._bits = np.zeros(_CHUNK_PAGES, np.bool_)
        durable.rewrite(descriptor, memoryview(b"\0"), at + size_bytes - 1)

    def put(self, first: int, count: int, *, present: bool) -> bool:
        """Set whether pages are in the file; return whether any of them was before."""
        was_present = False
        while count:
            chunk, begin = divmod(first, _CHUNK_PAGES)
            self._turn_to(chunk)
            end = min(begin + count, _CHUNK_PAGES)
            bits = self._bits[begin:end]
            was_present = was_present or bool(bits.any())
            bits[:] = present
            first += end - begin
            count -= end - begin
        return was_present

    def flush(self) -> None:
        """Write the chunk that is in memory to the file."""
        if self._chunk >= 0:
            packed = _in_words(np.packbits(self._bits, bitorder="little"))[: self._left_bytes()]
            durable.rewrite(self._descriptor, packed.data, self._at + self._chunk * _CHUNK_BYTES)

    def _turn_to(self, chunk: int) -> None:
        if chunk == self._chunk:
            return
        self.flush()
        self._chunk = chunk
        at, count = self._at + chunk * _CHUNK_BYTES, self._left_bytes()
        found = durable.read_at(self._descriptor, count, at).ljust(_CHUNK_BYTES, b"\0")
        ordered = _in_words(np.frombuffer(found, np.uint8))
        self._bits = np.unpackbits(ordered, bitorder="little").view(np.bool_)

    def _left_bytes(self) -> int:
        return min(_CHUNK_BYTES, self._size_bytes - self._chunk * _CHUNK_BYTES)


def _in_words(bitmap: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turn a bitmap of bytes into one of this host's words, as QEMU has it, or back."""
    if sys.byteorder == "big":
        return bitmap.view(np.uint64).byteswap().view(np.uint8)
    return bitmap


def _before_blocks(setup: Setup) -> bytes:
    """Return the stream up to its list of blocks, with the capability of sparse images."""
    machine = setup.machine.encode("ascii")
    configuration = struct.pack(">BI", Section.CONFIGURATION, len(machine)) + machine
    if setup.names_page_size:
        configuration += _part(PAGE_SIZE) + struct.pack(">I", PAGE_BITS)
    configuration += _part(CAPABILITIES) + struct.pack(">I", 1) + _named(CAPABILITY)
    ram = struct.pack(">BI", Section.START, setup.section) + _named(RAM)
    ram += struct.pack(">II", 0, RAM_VERSION)
    return MAGIC + configuration + ram + struct.pack(">Q", setup.ram_bytes | Flag.MEM_SIZE)


def _part(name: bytes) -> bytes:
    """Return the head of a part of the configuration, with its version."""
    return bytes([Section.SUBSECTION]) + _named(name) + struct.pack(">I", 1)


def _named(name: bytes) -> bytes:
    return bytes([len(name)]) + name


def _runs(offsets: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return the first index and the end of each run of pages with consecutive offsets."""
    if not len(offsets):
        return []
    cuts = (np.flatnonzero(np.diff(offsets) != PAGE_BYTES) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(offsets)], strict=True))


def _are_zero(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Mark the rows that are zero; a few bytes of a row are enough to rule most others out."""
    zero = np.asarray(~data[:, ::_TRIED_EVERY_BYTES].any(axis=1))
    for number in np.flatnonzero(zero):
        zero[number] = not data[number].any()
    return zero
