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
from collections.abc import Callable, Iterable, Iterator

MAGIC = 0x70416E53
_HEADER = struct.Struct("<IIII")
_ENTRY_BYTES = 16
_VERSION = 1
_SECTOR_BYTES = 512
_CHUNK_SECTORS = frozenset(1 << power for power in range(3, 11))
"""4 KiB to 512 KiB (lvcreate(8), --chunksize)."""
HEADER_BYTES = 4096
_MAP_CHUNKS = 1 << 16

Read = Callable[[int, int], memoryview]


class StoreLost(Exception):
    """The kernel gave the snapshot up: its store ran full, or could not be written."""


class StoreUnreadable(Exception):
    """Not the format this module knows; says where it differs."""


class ChangedChunks:
    """The chunks of a disk whose former content a snapshot's store holds.

    There are 268 million of them in a TiB at worst, and the domain is off meanwhile.  So each is a
    byte in a map of its part of the disk: never more memory than a byte per chunk of the disk, 16
    MiB per TiB with chunks of 64 KiB.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._maps: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return sum(part.count(1) for part in self._maps.values())

    def add(self, chunks: Iterable[int]) -> None:
        """Count these in."""
        for chunk in chunks:
            part = self._maps.get(chunk // _MAP_CHUNKS)
            if part is None:
                part = self._maps[chunk // _MAP_CHUNKS] = bytearray(_MAP_CHUNKS)
            part[chunk % _MAP_CHUNKS] = 1

    def runs(self, limit_bytes: int, disk_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield them as stretches of the disk, ascending: offset and length in bytes.

        None is longer than ``limit_bytes``, which is a chunk at least.
        """
        most = limit_bytes // self.chunk_bytes
        for first, end in self._stretches():
            for chunk in range(first, end, most):
                offset = chunk * self.chunk_bytes
                yield offset, min(min(chunk + most, end) * self.chunk_bytes, disk_bytes) - offset

    def _stretches(self) -> Iterator[tuple[int, int]]:
        for number, part in sorted(self._maps.items()):
            base = number * _MAP_CHUNKS
            first = part.find(1)
            while first >= 0:
                end = part.find(0, first)
                yield base + first, base + (_MAP_CHUNKS if end < 0 else end)
                first = -1 if end < 0 else part.find(1, end)


def read_table(read: Read, store_bytes: int, disk_bytes: int) -> ChangedChunks:
    """Read the whole table of a store that nothing writes to now.

    ``read`` gives bytes of the store by offset and length.  Raises ``StoreLost`` and
    ``StoreUnreadable``.
    """
    chunk_bytes = _chunk_bytes(read(0, HEADER_BYTES))
    disk_chunks = -(-disk_bytes // chunk_bytes)
    per_table = chunk_bytes // _ENTRY_BYTES
    changed = ChangedChunks(chunk_bytes)
    table_at, named, count = 1, 0, per_table
    while count == per_table:
        if (table_at + 1) * chunk_bytes > store_bytes:
            raise StoreUnreadable("its table has no end")
        entries = array("Q", bytes(read(table_at * chunk_bytes, chunk_bytes)))
        if sys.byteorder == "big":
            entries.byteswap()
        places = entries[1::2]
        count = places.index(0) if 0 in places else per_table
        if count and max(places[:count]) * chunk_bytes >= store_bytes:
            raise StoreUnreadable("it names a chunk beyond its own end")
        chunks = entries[0 : 2 * count : 2]
        if count and max(chunks) >= disk_chunks:
            raise StoreUnreadable("it names a chunk beyond the end of its disk")
        changed.add(chunks)
        named += count
        table_at += per_table + 1
    if len(changed) != named:
        raise StoreUnreadable("it names a chunk twice")
    return changed


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
