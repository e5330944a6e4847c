"""Digests of the pages that an image has, for a host that cannot keep those pages at hand.

Eight bytes stand for 4096, and the image is not read again; see `frameruns`.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from snapvm import xxh64
from snapvm.memory.frameruns import Marks, Pages, Run
from snapvm.memory.pagingmode import FRAME_BYTES


class PageDigests:
    """Of one chunk's frames; fulfils ``Originals``."""

    def __init__(self, frames: int) -> None:
        """Have room for a chunk of so many frames; each is noted when its page is written."""
        self._seed = secrets.randbits(64)
        self._digests = np.zeros(frames, np.uint64)

    def note(self, rows: npt.NDArray[np.intp] | slice, pages: Pages) -> None:
        """Note what has been written of the frames ``rows``; a guest may have others by now."""
        self._digests[rows] = self._of(pages)

    def pages(self, run: Run, live: Pages) -> Pages | None:
        """See ``Originals.pages``; they are had from the guest, if they are still the same."""
        held = live.copy()  # it may write while its frames are looked at one by one
        return None if self.differing(run, held).any() else held

    def differing(self, run: Run, live: Pages) -> Marks:
        """See ``Originals.differing``."""
        differs: Marks = self._of(live) != self._digests[run.start : run.stop]
        return differs

    def close(self) -> None:
        """There is nothing to give back."""

    def _of(self, pages: Pages) -> npt.NDArray[np.uint64]:
        found = xxh64.digests(np.ascontiguousarray(pages).data.cast("B"), FRAME_BYTES, self._seed)
        return np.array(found, np.uint64)
