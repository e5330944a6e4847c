"""A guest's pages in its image, mapped from the host's page cache; see `frameruns`."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

import numpy as np

from snapvm.memory.frameruns import Marks, Pages, Run

# CDLL releases Python's lock during the call; PyDLL and mmap's own methods do not.
_libc = ctypes.CDLL(None)
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ (linux/mman-common.h), since Linux 5.14."""


class FrameCopies:
    """A written part of the image, mapped to be read; fulfils ``Originals``."""

    def __init__(self, image: int, start: int, stop: int) -> None:
        """Map the file ``image``, a descriptor, from offset ``start`` to ``stop``."""
        self._first = start - start % mmap.ALLOCATIONGRANULARITY
        self._mapping = mmap.mmap(
            image,
            stop - self._first,
            flags=mmap.MAP_SHARED,
            prot=mmap.PROT_READ,
            offset=self._first,
        )
        self._bytes = np.frombuffer(self._mapping, np.uint8)

    def populate(self) -> None:
        """Enter all pages in the page tables of this process now, not one by one on first use.

        An older kernel refuses that, which costs only time.
        """
        _madvise(self._bytes.ctypes.data, len(self._bytes), _POPULATE_READ)

    def close(self) -> None:
        """End the mapping."""
        self._bytes = np.empty(0, np.uint8)  # an array over the mapping would keep it from closing
        self._mapping.close()

    def pages(self, run: Run, live: Pages) -> Pages:
        """See ``Originals.pages``."""
        first = run.offset_bytes - self._first
        return self._bytes[first : first + live.size].reshape(live.shape)

    def differing(self, run: Run, live: Pages) -> Marks:
        """See ``Originals.differing``."""
        copies = self.pages(run, live)
        differs: Marks = (live.view(np.uint64) != copies.view(np.uint64)).any(axis=1)
        return differs
