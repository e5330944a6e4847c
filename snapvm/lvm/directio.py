"""Block devices read and written around the page cache, which may hold what was there before."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapvm import retry

BUFFER_BYTES = 4 << 20


class Device:
    """An open device; ``read`` gives a view of a buffer that the next ``read`` overwrites.

    Offsets and lengths are multiples of 4096.  A device with larger logical blocks refuses what is
    no multiple of those (open(2), O_DIRECT).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # O_DIRECT wants memory that is aligned; pages are.
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        self.size_bytes = os.lseek(descriptor, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> memoryview:
        """Return ``length`` bytes, BUFFER_BYTES at most; ``OSError`` when they are not there."""
        view = memoryview(self._buffer)[:length]
        got = os.preadv(self._descriptor, [view], offset)
        if got != length:
            raise OSError(f"{length} bytes at {offset} are beyond its end")
        return view

    def write(self, offset: int, view: memoryview) -> None:
        """Write a view that ``read`` of another device gave."""
        if os.pwritev(self._descriptor, [view], offset) != len(view):
            raise OSError(f"{len(view)} bytes at {offset} could not all be written")

    def sync(self) -> None:
        """Bring what was written to the medium."""
        os.fdatasync(self._descriptor)


@contextmanager
def reading(path: Path) -> Iterator[Device]:
    """Open a device to read."""
    with _opened(path, os.O_RDONLY) as device:
        yield device


@contextmanager
def overwriting(path: Path) -> Iterator[Device]:
    """Open a device to read and write; ``OSError`` (EBUSY) when something else goes on using it."""
    with _opened(path, os.O_RDWR | os.O_EXCL) as device:
        yield device


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[Device]:
    descriptor = retry.device(lambda: os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC))
    try:
        yield Device(descriptor)
    finally:
        os.close(descriptor)
