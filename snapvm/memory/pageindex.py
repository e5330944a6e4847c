"""An index of an xl image by PFN: the type and the file offset of each page.

A later entry for a PFN replaces an earlier one.  PFNs may be scattered over terabytes, so the index
has blocks of 4096 PFNs which exist only where there is a page.  To keep an image from making us
allocate much more than it has data, `PageIndex.add` refuses one whose entries are too scattered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import FRAME_BYTES, Marks, Words
from snapvm.memory.xenformat import TYPE_HAS_DATA, PageType, PageTypes
from snapvm.memory.xenrecord import PageBatch
from snapvm.refusals import BadImage

_BLOCK_SHIFT: Final = 12
_BLOCK: Final = 1 << _BLOCK_SHIFT
_BLOCK_BYTES: Final = _BLOCK * 8
_FREE_BYTES: Final = 16 << 20
"""Any index may be as large as this, however little data the image has."""
_BYTES_PER_INDEX_BYTE: Final = 8
"""The index of an ordinary image is a 512th of its data; here it may be an eighth."""

_PAGES_PER_INDEX_PAGE: Final = FRAME_BYTES // 8

_TYPE_BITS: Final = np.uint64(4)
_TYPE: Final = np.uint64(0xF)
_MARK: Final = np.uint64(1 << 63)

Places = npt.NDArray[np.intp]


def needed_bytes(image_bytes: int) -> int:
    """Return how much memory the index of an ordinary image takes, also while it grows."""
    return image_bytes // _PAGES_PER_INDEX_PAGE * 3 // 2


class PageIndex:
    """Types and file offsets by PFN; a PFN without an entry has the type XTAB and no data."""

    def __init__(self, path: str, end_pfn: int) -> None:
        """Make an empty index of PFNs up to and with ``end_pfn``; ``path`` is for errors."""
        self._path = path
        self._block_of = np.zeros((end_pfn >> _BLOCK_SHIFT) + 1, np.int32)
        # An element holds, from its lowest bit up, the type, the offset of the data (0: none), and
        # the mark.  Block 0 is always empty.
        self._blocks = np.full((2, _BLOCK), np.uint64(PageType.XTAB), np.uint64)
        self._used = 1
        self.pages = 0
        """How many pages of data there were, repetitions included."""

    def add(self, batch: PageBatch) -> None:
        """Enter the pages of a batch, in place of earlier entries for the same PFNs."""
        has_data = TYPE_HAS_DATA[batch.types]
        rows = np.cumsum(has_data, dtype=np.uint64) - has_data
        offsets = np.uint64(batch.data_offset_bytes) + rows * np.uint64(FRAME_BYTES)
        values = np.where(has_data, offsets << _TYPE_BITS, np.uint64(0)) | batch.types
        self.pages += int(has_data.sum())
        places = _places(batch.pfns)
        self._make_blocks(places[batch.types != PageType.XTAB], batch.offset_bytes)
        # A PFN without a page gets no block for its own sake; where a block exists it is entered.
        blocks = self._block_of[places]
        matters = blocks > 0
        self._blocks[blocks[matters], _within(batch.pfns[matters])] = values[matters]

    def types(self, pfns: Words) -> PageTypes:
        """Return the types of PFNs, which must not be beyond the last."""
        return (self._look_up(pfns) & _TYPE).astype(np.uint8)

    def offsets(self, pfns: Words) -> Words:
        """Return the file offsets of the data of PFNs, 0 where there is none."""
        return (self._look_up(pfns) & ~_MARK) >> _TYPE_BITS

    def mark(self, pfns: Words) -> None:
        """Mark PFNs, none of them beyond the last; one without an entry takes no mark."""
        blocks = self._block_of[_places(pfns)]
        there = blocks > 0
        self._blocks[blocks[there], _within(pfns[there])] |= _MARK

    def marked(self, pfns: Words) -> Marks:
        """Tell which PFNs are marked."""
        return np.asarray(self._look_up(pfns) & _MARK != 0)

    def of_types(self, wanted: set[PageType]) -> Iterator[Words]:
        """Yield the PFNs of some types, in ascending order, block by block."""
        is_wanted = np.array([number in wanted for number in range(16)])
        for place in np.flatnonzero(self._block_of).tolist():
            types = self._blocks[self._block_of[place]] & _TYPE
            found = np.flatnonzero(is_wanted[types.astype(np.intp)])
            if len(found):
                yield (found + (place << _BLOCK_SHIFT)).astype(np.uint64)

    def _look_up(self, pfns: Words) -> Words:
        blocks = self._block_of[_places(pfns)]
        found: Words = self._blocks[blocks, _within(pfns)]
        return found

    def _make_blocks(self, places: Places, at_bytes: int) -> None:
        """Make the blocks that are missing; ``at_bytes`` is the offset in an error."""
        new = np.unique(places[self._block_of[places] == 0])
        needed = self._used + len(new)
        allowed = _FREE_BYTES + self.pages * FRAME_BYTES // _BYTES_PER_INDEX_BYTE
        if needed * _BLOCK_BYTES > allowed:
            why = "its page frame numbers lie too far apart for the little data it has"
            raise BadImage(path=self._path, offset_bytes=at_bytes, why=why)
        if needed > len(self._blocks):
            grown = np.empty((needed + needed // 2, _BLOCK), np.uint64)  # no memory before its use
            grown[: self._used] = self._blocks[: self._used]
            self._blocks = grown
        self._blocks[self._used : needed] = np.uint64(PageType.XTAB)
        self._block_of[new] = np.arange(self._used, needed)
        self._used = needed


def _places(pfns: Words) -> Places:
    """Return where in `PageIndex._block_of` the blocks of PFNs are."""
    return (pfns >> np.uint64(_BLOCK_SHIFT)).astype(np.intp)


def _within(pfns: Words) -> Places:
    """Return where in their blocks PFNs are."""
    return (pfns & np.uint64(_BLOCK - 1)).astype(np.intp)
