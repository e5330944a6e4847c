"""How large the store of a thick snapshot is: what a user asks for, and what LVM is told.

A thick snapshot keeps the former content of every chunk that is overwritten in a copy-on-write
store.  One that runs full is lost for good, silently for the domain (linux, dm-snap.c), so what
is taken when nobody asks is a store that cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_CHUNK_BYTES = 64 << 10
"""What is copied before its first write; small writes copy much, large chunks keep tables small."""
LEAST_CHUNK_BYTES = 4 << 10
LARGEST_CHUNK_BYTES = 512 << 10
"""What LVM takes, and powers of two only (lvcreate(8), --chunksize)."""

_ENTRY_BYTES = 16
"""A chunk's line in the store's table (dm-snap-persistent.c, struct disk_exception)."""
_HEADER_CHUNKS = 1
_LEAST_CHUNKS = 3

_UNIT_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_PERCENT = re.compile(r"(?P<number>\d{1,3}(\.\d{1,3})?)%\Z", re.ASCII)
_BYTES = re.compile(r"(?P<number>\d{1,12})(?P<unit>[KMGT]?)(i?B)?\Z", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CowSize:
    """How much may change before a thick snapshot is lost; everything when neither is given."""

    percent: float | None = None
    """Of the disk."""
    changed_bytes: int | None = None

    def __str__(self) -> str:
        if self.percent is not None:
            return f"{self.percent:g}%"
        return "full" if self.changed_bytes is None else f"{self.changed_bytes}B"


FULL = CowSize()


def parse(text: str) -> CowSize:
    """Read ``full``, ``20%`` or ``4G``; raise ``ValueError`` for anything else.

    So it does for a mere number, which is one of MiB to LVM, of percent to some, and of bytes to
    others: a snapshot with room for less than was meant is lost soon, and says so only then.
    """
    if text == "full":
        return FULL
    if match := _PERCENT.match(text):
        percent = float(match["number"])
        if 0 < percent <= 100:
            return CowSize(percent=percent)
    elif not text.isdigit() and (match := _BYTES.match(text)):
        changed_bytes = int(match["number"]) << _UNIT_SHIFTS[match["unit"].upper()]
        if changed_bytes:
            return CowSize(changed_bytes=changed_bytes)
    raise ValueError("must be full, a percentage such as 20%, or a size such as 4G")


def parse_chunk(text: str) -> int:
    """Read the size of a chunk such as ``64K``; raise ``ValueError`` for what LVM does not take."""
    match = _BYTES.match(text)
    chunk_bytes = int(match["number"]) << _UNIT_SHIFTS[match["unit"].upper()] if match else 0
    is_power = chunk_bytes > 0 and not chunk_bytes & (chunk_bytes - 1)
    if not is_power or not LEAST_CHUNK_BYTES <= chunk_bytes <= LARGEST_CHUNK_BYTES:
        raise ValueError("must be 4K, 8K, 16K and so on up to 512K")
    return chunk_bytes


def store_bytes(disk_bytes: int, extent_bytes: int, wanted: CowSize, chunk_bytes: int) -> int:
    """Return the size of a store for changes of a disk, in whole extents of its group.

    Never more than what holds every chunk of the disk (lvm2, snapshot_manip.c, cow_max_extents).
    """
    all_chunks = -(-disk_bytes // chunk_bytes)
    chunks = all_chunks
    if wanted.percent is not None:
        chunks = -(-int(all_chunks * wanted.percent) // 100)
    elif wanted.changed_bytes is not None:
        chunks = -(-wanted.changed_bytes // chunk_bytes)
    needed = with_metadata(min(chunks, all_chunks), chunk_bytes)
    stored = max(needed, _LEAST_CHUNKS) * chunk_bytes
    return -(-stored // extent_bytes) * extent_bytes


def with_metadata(chunks: int, chunk_bytes: int) -> int:
    """Return how many chunks a store needs that holds so many: its header and tables too."""
    entries_per_table = chunk_bytes // _ENTRY_BYTES
    return _HEADER_CHUNKS + chunks + (chunks + entries_per_table) // entries_per_table
