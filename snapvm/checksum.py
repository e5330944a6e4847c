"""Checksums of memory images: does a file still hold what was written to it?

A file is cut into pieces of a MiB, which all cores read beside each other.  For each piece that is
not all zeros, its place and its XXH64 go into a digest by BLAKE2b (RFC 7693).  So holes need not be
read, and a file has the same checksum whether its zeros are holes or not.  A checksum tells of
damage; it is no signature.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Final

from snapvm import durable, xxh64
from snapvm.model import Progress
from snapvm.workers import workers

_DIGEST_BYTES: Final = 16
_PIECE_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_PIECE_BYTES)

SumOf = Callable[[bytearray], bytes]

_KIND: Final = "xxh64-pieces"
_SUM_OF_PIECE: Final = {
    _KIND: lambda piece: struct.pack(">Q", xxh64.digest(piece)),
    "crc32-pieces": lambda piece: struct.pack(">I", zlib.crc32(piece)),
}
"""How the sum of a piece is made, by the kind of checksum; the second is in older records."""
_WHOLE_KIND: Final = "blake2b"
"""The digest of the whole file at once; it is in older records too."""


def of_file(path: Path, progress: Progress) -> str:
    """Read a file and return the kind and 32 hexadecimal digits; raises ``OSError``."""
    return f"{_KIND}:{_with_opened(path, progress, partial(_of_pieces, _SUM_OF_PIECE[_KIND]))}"


def is_right(path: Path, checksum: str, progress: Progress) -> bool:
    """Read a file and tell whether this is its checksum, as far as that can be told.

    It is True as well, and nothing is read, for a checksum that is not known (`is_known`): that of
    a newer snapvm, or none.  Raises ``OSError``.
    """
    if not is_known(checksum):
        return True
    kind, _, digest = checksum.partition(":")
    how = _of_whole if kind == _WHOLE_KIND else partial(_of_pieces, _SUM_OF_PIECE[kind])
    return digest == _with_opened(path, progress, how)


def is_known(checksum: str) -> bool:
    """Tell whether this snapvm can compute checksums of that kind."""
    return checksum.partition(":")[0] in (_WHOLE_KIND, *_SUM_OF_PIECE)


def _with_opened(path: Path, progress: Progress, how: Callable[[int, Progress], str]) -> str:
    descriptor = durable.open_file(path)
    try:
        return how(descriptor, progress)
    finally:
        os.close(descriptor)


def _of_whole(descriptor: int, progress: Progress) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    total_bytes = os.fstat(descriptor).st_size
    done_bytes = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, done_bytes):
        digest.update(piece)
        done_bytes += len(piece)
        progress.advance(done_bytes, total_bytes)
    return digest.hexdigest()


def _of_pieces(sum_of: SumOf, descriptor: int, progress: Progress) -> str:
    total_bytes = os.fstat(descriptor).st_size
    digest = hashlib.blake2b(total_bytes.to_bytes(8, "big"), digest_size=_DIGEST_BYTES)
    threads = os.cpu_count() or 1
    buffers = _Buffers()
    with workers(threads) as pool:
        under_way: deque[Future[bytes]] = deque()
        for begin in _pieces_with_data(descriptor, total_bytes):
            under_way.append(pool.submit(_of_piece, sum_of, buffers, descriptor, begin))
            if len(under_way) > 2 * threads:
                digest.update(under_way.popleft().result())
                progress.advance(begin, total_bytes)
        while under_way:
            digest.update(under_way.popleft().result())
    return digest.hexdigest()


class _Buffers(threading.local):
    """A buffer for each thread: a new one for each piece would take longer to map than to fill."""

    def __init__(self) -> None:
        self.own = bytearray(_PIECE_BYTES)


def _of_piece(sum_of: SumOf, buffers: _Buffers, descriptor: int, begin: int) -> bytes:
    """Return the place and the sum of a piece; nothing when it is all zeros."""
    count = os.preadv(descriptor, [buffers.own], begin)
    piece = buffers.own if count == _PIECE_BYTES else buffers.own[:count]
    if piece == _ZEROS[:count]:
        return b""
    return struct.pack(">Q", begin) + sum_of(piece)


def _pieces_with_data(descriptor: int, total_bytes: int) -> Iterator[int]:
    """Yield where each piece begins, without those that the file system knows to be holes."""
    begin = 0
    while begin < total_bytes:
        try:
            data_at = os.lseek(descriptor, begin, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole follows (lseek(2))
                return
            raise
        begin = data_at - data_at % _PIECE_BYTES
        end = os.lseek(descriptor, data_at, os.SEEK_HOLE)
        while begin < end:
            yield begin
            begin += _PIECE_BYTES
