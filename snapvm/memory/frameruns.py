"""Which of a guest's frames differ from what its image has of them.

This is told while the guest stands still.  So what can be is done before: a digest of each run of
frames as the image has them (XXH64; xxHash, doc/xxhash_spec.md), with which only the frames have to
be read.  A run that is not as its digest says, or has none, is looked at frame by frame, against
what there is: the pages themselves (`framecopies`), or a digest of each (`pagedigests`).

Two runs have the same digest by chance once in 2**64.  The seed is new each time: a guest cannot
prepare such a pair, and would spoil nothing but its own image.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from snapvm import xxh64
from snapvm.memory.pagingmode import FRAME_BYTES

ABSENT: Final = 0
"""The offset of a frame of which the image has no page."""
RUN_FRAMES: Final = 512
"""The most frames that are looked at in one go, 2 MiB: xxhash lets go of Python's lock for that."""

Pages = npt.NDArray[np.uint8]
"""Shape (n, 4096)."""
Offsets = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


class Run(NamedTuple):
    """Frames of a chunk, from row ``start`` to before ``stop``, side by side in the image too."""

    start: int
    stop: int
    offset_bytes: int
    """Where the first one's page is."""


class Originals(Protocol):
    """What the image has of a chunk's frames."""

    def pages(self, run: Run, live: Pages) -> Pages | None:
        """Return a run's pages as the image has them.

        None when they are only known not to be ``live``, its frames of now.
        """

    def differing(self, run: Run, live: Pages) -> Marks:
        """Mark those of a run's frames that are not as the image has them."""

    def close(self) -> None:
        """Give back what it holds."""


class FrameRuns:
    """A chunk's frames that are in the image, in runs."""

    def __init__(self, originals: Originals) -> None:
        self.originals = originals
        self._seed = secrets.randbits(64)
        self._digests: dict[Run, int | None] = {}
        """None where it is not known."""
        self._remembered: Marks = np.empty(0, np.bool_)
        """The frames in those runs."""

    def close(self) -> None:
        """End the comparing."""
        self.originals.close()

    def remember(self, live: Pages, offsets: Offsets, compared: Marks) -> None:
        """Have digests of what the image has of those frames that are going to be ``compared``."""
        self._remembered = compared
        self._digests = {}
        for run in runs_of(offsets, compared):
            pages = self.originals.pages(run, live[run.start : run.stop])
            self._digests[run] = None if pages is None else self._digest(pages)

    def differing(self, live: Pages, offsets: Offsets, compared: Marks) -> Marks:
        """Mark those of the ``compared`` frames that differ from their page in the image."""
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
    """Give runs of at most `RUN_FRAMES` marked frames that lie side by side in the image.

    They end at multiples of that, so that a frame more or less changes only the run it is in.
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
