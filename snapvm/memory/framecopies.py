"""The copies of a guest's frames in its image, and which frames differ from theirs.

The comparison is exact (memcmp), and happens while the guest stands still: so the image is mapped,
where the host's page cache has it, and compared in runs as large as they come.  Only a run that
differs is looked at more closely.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import FRAME_BYTES

ABSENT: Final = 0
"""The offset of a frame of which the image has no page."""
_RUN_FRAMES: Final = 1024
"""Frames compared by one call at first, 4 MiB: with 128 a guest of 1 GiB stood a third longer."""
_PARTS: Final = 4
"""Into how many a piece that differs is divided."""
_ROW_FRAMES: Final = 16
"""A piece of so many frames that differs is compared word by word."""

Pages = npt.NDArray[np.uint8]
"""Shape (n, 4096)."""
Offsets = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]

# CDLL releases Python's lock for the call, PyDLL and mmap's own methods would not.
_libc = ctypes.CDLL(None)
_memcmp = _libc.memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ (linux/mman-common.h), since Linux 5.14."""


class FrameCopies:
    """A piece of the image that is written, mapped to be read."""

    def __init__(self, image: int, start: int, stop: int) -> None:
        """Map what the file behind the descriptor ``image`` holds between two offsets."""
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
        """Have all of it in the tables of this process at once, instead of page by page.

        An older kernel refuses that; what is mapped is right all the same.
        """
        _madvise(self._bytes.ctypes.data, len(self._bytes), _POPULATE_READ)

    def close(self) -> None:
        """End the mapping."""
        self._bytes = np.empty(0, np.uint8)  # the mapping cannot be closed while it is looked at
        self._mapping.close()

    def differing(self, live: Pages, offsets: Offsets, compared: Marks) -> Marks:
        """Mark those of the ``compared`` frames that differ from their page in the image."""
        differs = np.zeros(len(live), np.bool_)
        for start, stop in _runs(offsets, compared):
            self._mark(live, offsets, start, stop, differs)
        return differs

    def _mark(self, live: Pages, offsets: Offsets, start: int, stop: int, differs: Marks) -> None:
        """Mark the differing frames of a run, whose pages lie side by side in the image."""
        first, size_bytes = int(offsets[start]) - self._first, (stop - start) * FRAME_BYTES
        live_at, copy_at = live.ctypes.data + start * FRAME_BYTES, self._bytes.ctypes.data + first
        if not _memcmp(live_at, copy_at, size_bytes):
            return
        if stop - start <= _ROW_FRAMES:
            copy = self._bytes[first : first + size_bytes].reshape(-1, FRAME_BYTES)
            rows = live[start:stop].view(np.uint64) != copy.view(np.uint64)
            differs[start:stop] = rows.any(axis=1)
            return
        step = -(-(stop - start) // _PARTS)
        for part in range(start, stop, step):
            self._mark(live, offsets, part, min(part + step, stop), differs)


def _runs(offsets: Offsets, compared: Marks) -> Iterator[tuple[int, int]]:
    """Give runs of at most `_RUN_FRAMES` frames that lie side by side in the image."""
    rows = np.flatnonzero(compared)
    if not len(rows):
        return
    goes_on = (np.diff(rows) == 1) & (np.diff(offsets[rows]) == FRAME_BYTES)
    ends = [*(np.flatnonzero(~goes_on) + 1).tolist(), len(rows)]
    first = 0
    for end in ends:
        row, last = int(rows[first]), int(rows[end - 1]) + 1
        for start in range(row, last, _RUN_FRAMES):
            yield start, min(start + _RUN_FRAMES, last)
        first = end
