"""Checksums of memory images: does a file still hold what was written to it?

A file is cut into pieces of a MiB, which all cores read beside each other.  For each piece that is
not all zeros, its place and its XXH64 go into a digest by SHA-256.  So holes need not be read, and
a file has the same checksum whether its zeros are holes or not.  A checksum tells of damage; it is
no signature.

In older records that digest is by BLAKE2b (RFC 7693), which not every host has: with FIPS mode,
Red Hat's Python refuses it (00329-fips.patch of its package).
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Protocol

from snapvm import durable, xxh64
from snapvm.model import Progress
from snapvm.workers import workers

_DIGEST_BYTES: Final = 16
_PIECE_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_PIECE_BYTES)

SumOf = Callable[[bytearray], bytes]
"""Makes the sum of a piece."""


class _Digest(Protocol):
    """What ``hashlib`` makes."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def _blake2b() -> _Digest:
    """Raises ``TypeError`` or ``ValueError`` where this Python does without it."""
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)


def _xxh64(piece: bytearray) -> bytes:
    return struct.pack(">Q", xxh64.digest(piece))


def _crc32(piece: bytearray) -> bytes:
    return struct.pack(">I", zlib.crc32(piece))


_KIND: Final = "xxh64-sha256"
_HOW: Final[Mapping[str, tuple[Callable[[], _Digest], SumOf | None]]] = {
    _KIND: (hashlib.sha256, _xxh64),
    "xxh64-pieces": (_blake2b, _xxh64),
    "crc32-pieces": (_blake2b, _crc32),
    "blake2b": (_blake2b, None),
}
"""The digest and what it is made of, by the kind of checksum: the sums of pieces, or the whole file
at once where there is no ``SumOf``.  All but the first are in older records."""


def of_file(path: Path, progress: Progress) -> str:
    """Read a file and return the kind and 32 hexadecimal digits; raises ``OSError``."""
    return f"{_KIND}:{_of_kind(_KIND, path, progress)}"


def is_right(path: Path, checksum: str, progress: Progress) -> bool:
    """Read a file and tell whether this is its checksum, as far as that can be told.

    It is True as well, and nothing is read, for a checksum that is not known (`is_known`): that of
    a newer snapvm, or none.  Raises ``OSError``.
    """
    if not is_known(checksum):
        return True
    kind, _, digest = checksum.partition(":")
    return digest == _of_kind(kind, path, progress)


def is_known(checksum: str) -> bool:
    """Tell whether this snapvm can compute checksums of that kind, on this host."""
    kind = checksum.partition(":")[0]
    if kind not in _HOW:
        return False
    digest, _ = _HOW[kind]
    try:
        digest()
    except (TypeError, ValueError):
        return False
    return True


def _of_kind(kind: str, path: Path, progress: Progress) -> str:
    new_digest, sum_of = _HOW[kind]
    digest = new_digest()
    descriptor = durable.open_file(path)
    try:
        if sum_of is None:
            _add_whole(digest, descriptor, progress)
        else:
            _add_pieces(digest, sum_of, descriptor, progress)
    finally:
        os.close(descriptor)
    return digest.hexdigest()[: 2 * _DIGEST_BYTES]


def _add_whole(digest: _Digest, descriptor: int, progress: Progress) -> None:
    total_bytes = os.fstat(descriptor).st_size
    done_bytes = 0
    while piece := os.pread(descriptor, _PIECE_BYTES, done_bytes):
        digest.update(piece)
        done_bytes += len(piece)
        progress.advance(done_bytes, total_bytes)


def _add_pieces(digest: _Digest, sum_of: SumOf, descriptor: int, progress: Progress) -> None:
    total_bytes = os.fstat(descriptor).st_size
    digest.update(total_bytes.to_bytes(8, "big"))
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


class _Buffers(threading.local):
    """A buffer for each thread: a new one for each piece would take longer to map than to fill."""

    def __init__(self) -> None:
        self.own = bytearray(_PIECE_BYTES)


def _of_piece(sum_of: SumOf, buffers: _Buffers, descriptor: int, begin: int) -> bytes:
    """Return the place and the sum of a piece; nothing when it is all zeros."""
    count = durable.read_into(buffers.own, descriptor, begin)
    piece = buffers.own if count == _PIECE_BYTES else buffers.own[:count]
    if piece == _ZEROS[:count]:
        return b""
    return struct.pack(">Q", begin) + sum_of(piece)


def _pieces_with_data(descriptor: int, total_bytes: int) -> Iterator[int]:
    """Yield where each piece begins, without those that the file system knows to be holes."""
    begin = 0
    while begin < total_bytes and (data := _next_data(descriptor, begin, total_bytes)):
        data_at, end = data
        begin = data_at - data_at % _PIECE_BYTES
        while begin < end:
            yield begin
            begin += _PIECE_BYTES


def _next_data(descriptor: int, begin: int, total_bytes: int) -> tuple[int, int] | None:
    """Return where data begin next, and end; None when nothing but a hole follows.

    Where a file system does not tell holes from data (lseek(2), EINVAL), all of it is read.
    """
    try:
        data_at = os.lseek(descriptor, begin, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return begin, total_bytes
        raise
    return data_at, os.lseek(descriptor, data_at, os.SEEK_HOLE)
