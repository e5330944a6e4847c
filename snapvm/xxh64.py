"""XXH64 (xxHash, doc/xxhash_spec.md): it tells of any change, but not of malice.

It needs neither tables nor vector units, and so it is fast everywhere: of a MiB 6 GB/s on one core
where zlib's CRC-32 does 3, and four times as fast as that on an emulated processor.
"""

from __future__ import annotations

import xxhash


def digest(data: bytes | bytearray | memoryview, seed: int = 0) -> int:
    """Return the digest of data; a larger piece leaves Python's lock to others meanwhile."""
    # Of an object, for the function that does it in one go keeps the lock.
    return int(xxhash.xxh64(data, seed=seed).intdigest())


def digests(data: memoryview, piece_bytes: int, seed: int) -> list[int]:
    """Return the digest of each piece of data, which are small and many."""
    of = xxhash.xxh64_intdigest
    return [of(data[at : at + piece_bytes], seed) for at in range(0, len(data), piece_bytes)]
