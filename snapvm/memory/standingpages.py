"""Write the pages of a guest as they were while it stood still, with page tables made canonical.

An ordinary page that the image has already is overwritten in place.  Any other page is appended,
and a restore takes the last one of a PFN (tools/libs/guest/xg_sr_restore.c).
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from snapvm import durable
from snapvm.memory.foreignlog import ForeignLog
from snapvm.memory.frameruns import ABSENT, Pages, runs_of
from snapvm.memory.framestore import Chunk
from snapvm.memory.normalise import FrameMap, Normaliser
from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.xenformat import (
    PAGES_PER_BATCH,
    TYPE_HAS_DATA,
    TYPE_LEVEL,
    PageType,
    PageTypes,
)
from snapvm.memory.xenimage import ImageWriter


class StandingPages:
    """Writes pages into an image whose head is already written."""

    def __init__(
        self, file: BinaryIO, writer: ImageWriter, frame_map: FrameMap, origin: str
    ) -> None:
        """``frame_map`` is of the guest as it stands still; ``origin`` is the path of errors."""
        self._file = file
        self._writer = writer
        self.frame_map = frame_map
        self._normaliser = Normaliser(frame_map, origin)
        self.foreign = ForeignLog()
        """The table entries that were zeroed."""

    def write_kept(self, chunk: Chunk) -> None:
        """Write the kept frames, and entries for the frames that the domain no longer has."""
        rows = chunk.fresh_rows
        types, offsets = chunk.types[rows], chunk.offsets[rows]
        over = (types == PageType.NOTAB) & (offsets != ABSENT)
        for run in runs_of(offsets, over):
            pages = chunk.fresh[run.start : run.stop]
            durable.rewrite(self._file.fileno(), pages.data, run.offset_bytes)
        behind = np.flatnonzero(~over)
        for start in range(0, len(behind), PAGES_PER_BATCH):  # in batches, because each is copied
            part = behind[start : start + PAGES_PER_BATCH]
            self.append(chunk.pfns[rows[part]], types[part], chunk.fresh[part])
        lost = chunk.lost_rows()
        if len(lost):
            none = np.empty((0, FRAME_BYTES), np.uint8)
            self._writer.pages(chunk.pfns[lost], chunk.types[lost], none)
            chunk.offsets[lost] = ABSENT

    def append(self, pfns: Words, types: PageTypes, pages: Pages) -> None:
        """Append the pages that the domain owns; of page tables append a canonical copy."""
        for start in range(0, len(pfns), PAGES_PER_BATCH):
            part = slice(start, start + PAGES_PER_BATCH)
            is_owned = TYPE_HAS_DATA[types[part]]
            own_pfns, own_types = pfns[part][is_owned], types[part][is_owned]
            own_pages = pages[part] if is_owned.all() else pages[part][is_owned]
            levels = TYPE_LEVEL[own_types]
            rows = np.flatnonzero(levels)
            if len(rows):
                if not own_pages.flags.writeable:
                    own_pages = own_pages.copy()
                tables = own_pages[rows].view(np.uint64)
                found = self._normaliser.canonicalise(tables, levels[rows], own_pfns[rows])
                self.foreign.add(found)
                own_pages[rows] = tables.view(np.uint8)
            if len(own_pfns):
                self._writer.pages(own_pfns, own_types, own_pages)
