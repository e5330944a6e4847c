"""The table in the store of a thick snapshot: which chunks of its disk have changed since.

The format is that of linux, drivers/md/dm-snap-persistent.c, in little endian: chunk 0 holds the
header; a table of ``chunk / 16`` entries follows, then the chunks it names, then the next table.
An entry is two 64-bit numbers, the chunk of the disk and where its former content is in the
store; the first entry with a zero there ends the table.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = 0x70416E53
_HEADER = struct.Struct("<IIII")
_ENTRY_BYTES = 16
_VERSION = 1
_SECTOR_BYTES = 512
_CHUNK_SECTORS = frozenset(1 << power for power in range(3, 11))
"""4 KiB to 512 KiB (lvcreate(8), --chunksize)."""
HEADER_BYTES = 4096

Read = Callable[[int, int], memoryview]


class StoreLost(Exception):
    """The kernel gave the snapshot up: its store ran full, or could not be written."""


class StoreUnreadable(Exception):
    """Not the format this module knows; says where it differs."""


@dataclass(frozen=True, slots=True)
class ChangedChunks:
    """The chunks of a disk whose former content a snapshot's store holds, ascending."""

    chunk_bytes: int
    chunks: array[int]

    def runs(self, limit_bytes: int, disk_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield them as stretches of the disk: offset and length, at most ``limit_bytes`` long."""
        offset = length = 0
        for chunk in self.chunks:
            start = chunk * self.chunk_bytes
            size = min(self.chunk_bytes, disk_bytes - start)
            if length and start == offset + length and length + size <= limit_bytes:
                length += size
                continue
            if length:
                yield offset, length
            offset, length = start, size
        if length:
            yield offset, length


def read_table(read: Read, store_bytes: int, disk_bytes: int) -> ChangedChunks:
    """Read the whole table of a store that nothing writes to now.

    ``read`` gives bytes of the store by offset and length.  Raises ``StoreLost`` and
    ``StoreUnreadable``.
    """
    chunk_bytes = _chunk_bytes(read(0, HEADER_BYTES))
    disk_chunks = -(-disk_bytes // chunk_bytes)
    per_table = chunk_bytes // _ENTRY_BYTES
    found = array("Q")
    table_at = 1
    while True:
        if (table_at + 1) * chunk_bytes > store_bytes:
            raise StoreUnreadable("its table has no end")
        entries = array("Q", bytes(read(table_at * chunk_bytes, chunk_bytes)))
        if sys.byteorder == "big":
            entries.byteswap()
        places = entries[1::2]
        count = places.index(0) if 0 in places else per_table
        if count and max(places[:count]) * chunk_bytes >= store_bytes:
            raise StoreUnreadable("it names a chunk beyond its own end")
        found += entries[0 : 2 * count : 2]
        if count < per_table:
            break
        table_at += per_table + 1
    chunks = array("Q", sorted(found))
    if chunks and chunks[-1] >= disk_chunks:
        raise StoreUnreadable("it names a chunk beyond the end of its disk")
    if len(set(chunks)) != len(chunks):
        raise StoreUnreadable("it names a chunk twice")
    return ChangedChunks(chunk_bytes, chunks)


def _chunk_bytes(header: memoryview) -> int:
    magic, valid, version, chunk_sectors = _HEADER.unpack(header[: _HEADER.size])
    if magic != MAGIC:
        raise StoreUnreadable(f"its first bytes are {magic:#010x}")
    if not valid:
        raise StoreLost
    if version != _VERSION:
        raise StoreUnreadable(f"it is of version {version}")
    if chunk_sectors not in _CHUNK_SECTORS:
        raise StoreUnreadable(f"its chunks have {chunk_sectors} sectors")
    return int(chunk_sectors) * _SECTOR_BYTES
