"""Read a stream of bytes exactly, with errors that name the byte.

`ByteSource.read` does not believe a header: it allocates memory as the bytes come, so that a length
of gigabytes in a file of a kilobyte costs a kilobyte.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from snapvm.failures import StorageFailed
from snapvm.memory.pagingmode import FRAME_BYTES
from snapvm.refusals import BadImage

_CHUNK_BYTES: Final = 1 << 20


class ByteSource:
    """Reads a stream from its present position, which is byte ``offset_bytes``.

    A regular file is skipped by seeking, a pipe by reading.  Every method raises `BadImage` when
    the stream ends too early, and `StorageFailed` when it cannot be read.
    """

    def __init__(self, stream: BinaryIO, path: str, *, offset_bytes: int = 0) -> None:
        self._stream = stream
        self._path = path
        self.offset_bytes = offset_bytes
        self._size_bytes = _regular_size(stream)

    def bad(self, why: str, *, at: int | None = None) -> BadImage:
        """Return the error for this position, or for position ``at``."""
        where = self.offset_bytes if at is None else at
        return BadImage(path=self._path, offset_bytes=where, why=why)

    def read(self, count_bytes: int, what: str) -> bytes:
        """Read exactly ``count_bytes``; ``what`` names them in an error."""
        if count_bytes <= _CHUNK_BYTES:
            data = self._some(count_bytes)
            if len(data) == count_bytes:
                return data
            raise self._truncated(count_bytes - len(data), what)
        parts = bytearray()
        while len(parts) < count_bytes:
            part = self._some(min(_CHUNK_BYTES, count_bytes - len(parts)))
            if not part:
                raise self._truncated(count_bytes - len(parts), what)
            parts += part
        return bytes(parts)

    def read_pages(self, pages: int, what: str) -> npt.NDArray[np.uint8]:
        """Read pages into a new array of the shape (n, 4096), which is allocated whole."""
        data = np.empty((pages, FRAME_BYTES), np.uint8)
        view = data.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                count = self._stream.readinto(view[done:])  # type: ignore[attr-defined]
            except OSError as error:
                raise self._failed(error) from error
            if not count:
                raise self._truncated(len(view) - done, what)
            done += count
            self.offset_bytes += count
        return data

    def skip(self, count_bytes: int, what: str) -> None:
        """Skip bytes, which must be there."""
        if self._size_bytes is None:
            while count_bytes:
                step = min(_CHUNK_BYTES, count_bytes)
                self.read(step, what)
                count_bytes -= step
            return
        if self.offset_bytes + count_bytes > self._size_bytes:
            missing = self.offset_bytes + count_bytes - self._size_bytes
            raise self._truncated(missing, what, at=self._size_bytes)
        self._stream.seek(count_bytes, os.SEEK_CUR)
        self.offset_bytes += count_bytes

    def _some(self, count_bytes: int) -> bytes:
        try:
            data = self._stream.read(count_bytes)
        except OSError as error:
            raise self._failed(error) from error
        self.offset_bytes += len(data)
        return data

    def _truncated(self, missing_bytes: int, what: str, *, at: int | None = None) -> BadImage:
        return self.bad(f"it ends {missing_bytes} bytes before the end of {what}", at=at)

    def _failed(self, error: OSError) -> StorageFailed:
        return StorageFailed(path=self._path, why=error.strerror or str(error))


def _regular_size(stream: BinaryIO) -> int | None:
    """Return the size of a regular file, None for anything else."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # io.BytesIO has no descriptor (io.UnsupportedOperation is both)
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
