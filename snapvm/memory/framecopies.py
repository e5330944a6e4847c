"""The copies of a guest's frames in its image, and which frames differ from theirs.

This is told while the guest stands still.  So what can be is done before: a digest of each run of
copies (XXH64; xxHash, doc/xxhash_spec.md), with which only the frames have to be read.  A run that
is not as its digest says, or has none, is compared with its copies, which the host's page cache
has.

Two runs have the same digest by chance once in 2**64.  The seed is new each time: a guest cannot
prepare such a pair, and would spoil nothing but its own image.
"""

from __future__ import annotations

import ctypes
import mmap
import secrets
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm import xxh64
from snapvm.memory.pagingmode import FRAME_BYTES

ABSENT: Final = 0
"""The offset of a frame of which the image has no page."""
_RUN_FRAMES: Final = 512
"""The most frames that are looked at in one go, 2 MiB: xxhash lets go of Python's lock for that."""

Pages = npt.NDArray[np.uint8]
"""Shape (n, 4096)."""
Offsets = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]

# CDLL releases Python's lock for the call, PyDLL and mmap's own methods would not.
_libc = ctypes.CDLL(None)
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
        self._seed = secrets.randbits(64)
        self._digests: dict[tuple[int, int], int] = {}
        """Of the copies of runs, by the first row and the end."""
        self._remembered: Marks = np.empty(0, np.bool_)
        """The frames in those runs."""

    def populate(self) -> None:
        """Have all of it in the tables of this process at once, instead of page by page.

        An older kernel refuses that; what is mapped is right all the same.
        """
        _madvise(self._bytes.ctypes.data, len(self._bytes), _POPULATE_READ)

    def close(self) -> None:
        """End the mapping."""
        self._bytes = np.empty(0, np.uint8)  # the mapping cannot be closed while it is looked at
        self._mapping.close()

    def remember(self, offsets: Offsets, compared: Marks) -> None:
        """Have digests of those copies that are going to be ``compared``."""
        self._remembered = compared
        self._digests = {
            (start, stop): self._digest(self._copies(offsets, start, stop))
            for start, stop in _runs(offsets, compared)
        }

    def differing(self, live: Pages, offsets: Offsets, compared: Marks) -> Marks:
        """Mark those of the ``compared`` frames that differ from their page in the image."""
        differs = np.zeros(len(live), np.bool_)
        is_known = np.array_equal(compared, self._remembered)
        for start, stop in self._digests if is_known else _runs(offsets, compared):
            frames, digest = live[start:stop], self._digests.get((start, stop))
            if digest is None or digest != self._digest(frames):
                copies = self._copies(offsets, start, stop)
                differs[start:stop] = (frames.view(np.uint64) != copies.view(np.uint64)).any(axis=1)
        return differs

    def _digest(self, pages: Pages) -> int:
        return xxh64.digest(pages.data, self._seed)

    def _copies(self, offsets: Offsets, start: int, stop: int) -> Pages:
        """Return the copies of a run, which lie side by side in the image."""
        first = int(offsets[start]) - self._first
        return self._bytes[first : first + (stop - start) * FRAME_BYTES].reshape(-1, FRAME_BYTES)


def _runs(offsets: Offsets, compared: Marks) -> Iterator[tuple[int, int]]:
    """Give runs of at most `_RUN_FRAMES` frames that lie side by side in the image.

    They end at multiples of that, so that a frame more or less changes only the run it is in.
    """
    rows = np.flatnonzero(compared)
    if not len(rows):
        return
    goes_on = (np.diff(rows) == 1) & (np.diff(offsets[rows]) == FRAME_BYTES)
    ends = [*(np.flatnonzero(~goes_on) + 1).tolist(), len(rows)]
    first = 0
    for end in ends:
        start, last = int(rows[first]), int(rows[end - 1]) + 1
        while start < last:
            stop = min(start - start % _RUN_FRAMES + _RUN_FRAMES, last)
            yield start, stop
            start = stop
        first = end
