"""Find out which of a guest's frames differ from their pages in the image.

The guest stands still meanwhile, so the image's side is prepared before: each run of frames gets a
digest of its pages in the image (XXH64; xxHash, doc/xxhash_spec.md), and then only the frames have
to be read.  A run without a digest, or with another one, is compared frame by frame: with the pages
themselves (`framecopies`), or with a digest of each (`pagedigests`).

Two runs have the same digest by chance once in 2**64.  The seed is new each time, so that a guest
cannot prepare such a pair, which would spoil only its own image anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from snapvm import xxh64
from snapvm.memory.pagingmode import FRAME_BYTES, Marks

ABSENT: Final = 0
"""Stands for the offset of a frame that has no page in the image."""
RUN_FRAMES: Final = 512
"""The most frames of a run: for 2 MiB xxhash releases Python's lock."""

Pages = npt.NDArray[np.uint8]
"""Shape (n, 4096)."""
Offsets = npt.NDArray[np.int64]


class Run(NamedTuple):
    """Rows ``start`` to before ``stop`` of a chunk, whose pages are side by side in the image."""

    start: int
    stop: int
    offset_bytes: int
    """The offset of the first page in the image."""


class Originals(Protocol):
    """The pages of a chunk's frames in the image, or what stands for them."""

    def pages(self, run: Run, live: Pages) -> Pages | None:
        """Return a run's pages in the image.

        Returns None when all that is known is that they differ from ``live``, the guest's frames.
        """

    def differing(self, run: Run, live: Pages) -> Marks:
        """Mark the frames of ``live`` that differ from their pages in the image."""

    def close(self) -> None:
        """Give back what it holds."""


class FrameRuns:
    """Compares the frames of one chunk with the image, run by run."""

    def __init__(self, originals: Originals) -> None:
        self.originals = originals
        self._seed = secrets.randbits(64)
        self._digests: dict[Run, int | None] = {}
        """The digest of each run's pages in the image; None where they are not known."""
        self._remembered: Marks = np.empty(0, np.bool_)
        """The frames that are in those runs."""

    def close(self) -> None:
        """Give back what the comparison needed."""
        self.originals.close()

    def remember(self, live: Pages, offsets: Offsets, compared: Marks) -> None:
        """Make digests of the pages in the image of those frames that will be ``compared``."""
        self._remembered = compared
        self._digests = {}
        for run in runs_of(offsets, compared):
            pages = self.originals.pages(run, live[run.start : run.stop])
            self._digests[run] = None if pages is None else self._digest(pages)

    def differing(self, live: Pages, offsets: Offsets, compared: Marks) -> Marks:
        """Mark the ``compared`` frames that differ from their page in the image."""
        differs = np.zeros(len(live), np.bool_)
        is_known = np.array_equal(compared, self._remembered)
        for run in self._digests if is_known else runs_of(offsets, compared):
            frames, digest = live[run.start : run.stop], self._digests.get(run)
            if digest is None or digest != self._digest(frames):
                differs[run.start : run.stop] = self.originals.differing(run, frames)
        return differs

    def _digest(self, pages: Pages) -> int:
        return xxh64.digest(pages.data, self._seed)


def runs_of(offsets: Offsets, marked: Marks) -> Iterator[Run]:
    """Yield runs of at most `RUN_FRAMES` marked frames whose pages are side by side in the image.

    Runs end at multiples of `RUN_FRAMES`, so that one more frame changes only the run it is in.
    """
    rows = np.flatnonzero(marked)
    if not len(rows):
        return
    goes_on = (np.diff(rows) == 1) & (np.diff(offsets[rows]) == FRAME_BYTES)
    ends = [*(np.flatnonzero(~goes_on) + 1).tolist(), len(rows)]
    first = 0
    for end in ends:
        start, last = int(rows[first]), int(rows[end - 1]) + 1
        while start < last:
            stop = min(start - start % RUN_FRAMES + RUN_FRAMES, last)
            yield Run(start, stop, int(offsets[start]))
            start = stop
        first = end
