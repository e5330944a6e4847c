"""A guest's pages in its image, mapped from the host's page cache; see `frameruns`."""

from __future__ import annotations

import ctypes
import mmap
import os
from ctypes import c_int, c_long, c_size_t, c_void_p
from typing import Final

import numpy as np

from snapvm.memory.frameruns import Pages, Run
from snapvm.memory.pagingmode import Marks

# CDLL releases Python's lock during the call; PyDLL and mmap's own methods do not.  Python's mmap
# also keeps a descriptor open for each mapping: those of 64 GiB are more than a process may have.
_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise = _libc.mmap, _libc.munmap, _libc.madvise
_mmap.restype = c_void_p
_mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, c_long]
_munmap.argtypes = [c_void_p, c_size_t]
_madvise.argtypes = [c_void_p, c_size_t, c_int]
_FAILED: Final = c_void_p(-1).value
"""MAP_FAILED (mmap(2))."""
_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ (linux/mman-common.h), since Linux 5.14."""


def why_not(image: int) -> str:
    """Say why the beginning of the file ``image``, a descriptor, cannot be mapped; empty if it can.

    File systems in user space may refuse to map a file that is written to (Linux, fs/fuse/file.c,
    fuse_direct_mmap).
    """
    try:
        FrameCopies(image, 0, mmap.ALLOCATIONGRANULARITY).close()
    except OSError as error:
        return str(error.strerror)
    return ""


class FrameCopies:
    """A written part of the image, mapped to be read; fulfils ``Originals``."""

    def __init__(self, image: int, start: int, stop: int) -> None:
        """Map the file ``image``, a descriptor, from offset ``start`` to ``stop``."""
        self._first = start - start % mmap.ALLOCATIONGRANULARITY
        self._size_bytes = stop - self._first
        address = _mmap(None, self._size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, image, self._first)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._address: int | None = address
        memory = (ctypes.c_uint8 * self._size_bytes).from_address(address)
        self._bytes = np.frombuffer(memoryview(memory).cast("B"), np.uint8)
        self._bytes.flags.writeable = False  # to write to it would be a crash

    def populate(self) -> None:
        """Enter all pages in the page tables of this process now, not one by one on first use.

        An older kernel refuses that, which costs only time.
        """
        _madvise(self._address, self._size_bytes, _POPULATE_READ)

    def close(self) -> None:
        """End the mapping; harmless when it has ended."""
        self._bytes = np.empty(0, np.uint8)  # no array over the mapping may outlive it
        address, self._address = self._address, None
        if address is not None:
            _munmap(address, self._size_bytes)

    def pages(self, run: Run, live: Pages) -> Pages:
        """See ``Originals.pages``."""
        first = run.offset_bytes - self._first
        return self._bytes[first : first + live.size].reshape(live.shape)

    def differing(self, run: Run, live: Pages) -> Marks:
        """See ``Originals.differing``."""
        copies = self.pages(run, live)
        differs: Marks = (live.view(np.uint64) != copies.view(np.uint64)).any(axis=1)
        return differs
