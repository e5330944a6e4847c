"""Digests of an image's pages, for a host whose page cache cannot hold the image.

Eight bytes stand for 4096, and the image need not be read again; see `frameruns`.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

from snapvm import xxh64
from snapvm.memory.frameruns import Pages, Run
from snapvm.memory.pagingmode import FRAME_BYTES, Marks


class PageDigests:
    """The digests of one chunk's pages in the image; fulfils ``Originals``."""

    def __init__(self, frames: int) -> None:
        """Make room for the digests of ``frames`` frames."""
        self._seed = secrets.randbits(64)
        self._digests = np.zeros(frames, np.uint64)

    def note(self, rows: npt.NDArray[np.intp] | slice, pages: Pages) -> None:
        """Note the digests of ``pages`` as they were written for ``rows``."""
        self._digests[rows] = self._of(pages)

    def pages(self, run: Run, live: Pages) -> Pages | None:
        """See ``Originals.pages``; the guest's own frames, if they are still the same."""
        held = live.copy()  # the guest may write while its frames are compared one by one
        return None if self.differing(run, held).any() else held

    def differing(self, run: Run, live: Pages) -> Marks:
        """See ``Originals.differing``."""
        differs: Marks = self._of(live) != self._digests[run.start : run.stop]
        return differs

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    def _of(self, pages: Pages) -> npt.NDArray[np.uint64]:
        found = xxh64.digests(np.ascontiguousarray(pages).data.cast("B"), FRAME_BYTES, self._seed)
        return np.array(found, np.uint64)
