"""Stores of thick snapshots, built as the kernel would (linux, dm-snap-persistent.c)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR_BYTES = 512


def build_store(
    kept: Mapping[int, bytes],
    *,
    chunk_bytes: int = 4096,
    spare_chunks: int = 4,
    valid: int = 1,
    version: int = 1,
    magic: bytes = b"SnAp",
) -> bytes:
    """Return a store that keeps ``kept``: the former content of a disk's chunks, in this order."""
    per_table = chunk_bytes // 16
    header = struct.pack("<4sIII", magic, valid, version, chunk_bytes // SECTOR_BYTES)
    chunks = [header.ljust(chunk_bytes, b"\0")]
    items = list(kept.items())
    for begin in range(0, len(items) + 1, per_table):
        part = items[begin : begin + per_table]
        table_at = len(chunks)
        entries = [struct.pack("<QQ", old, table_at + 1 + i) for i, (old, _) in enumerate(part)]
        chunks.append(b"".join(entries).ljust(chunk_bytes, b"\0"))
        chunks += [content.ljust(chunk_bytes, b"\0") for _, content in part]
    return b"".join(chunks) + bytes(spare_chunks * chunk_bytes)
