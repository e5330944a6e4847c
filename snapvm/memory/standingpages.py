"""What is written of a guest that stands still, or stood: its tables made canonical.

A page that is in the image already and is still an ordinary one is written over; any other goes
behind what there is, and counts instead (tools/libs/guest/xg_sr_restore.c).
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from snapvm import durable
from snapvm.memory.frameruns import ABSENT, Pages, runs_of
from snapvm.memory.framestore import Chunk
from snapvm.memory.normalise import ForeignEntries, FrameMap, Normaliser
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
    """Puts pages into an image whose head is written."""

    def __init__(
        self, file: BinaryIO, writer: ImageWriter, frame_map: FrameMap, origin: str
    ) -> None:
        """``frame_map`` is of the guest as it stands; ``origin`` is what ``BadImage`` calls it."""
        self._file = file
        self._writer = writer
        self._normaliser = Normaliser(frame_map, origin)
        self.foreign: list[ForeignEntries] = []
        """The entries of tables that were zeroed."""

    def write_kept(self, chunk: Chunk) -> None:
        """Write the frames that were kept, and say which of the others are the domain's no more."""
        rows = chunk.fresh_rows
        types, offsets = chunk.types[rows], chunk.offsets[rows]
        over = (types == PageType.NOTAB) & (offsets != ABSENT)
        for run in runs_of(offsets, over):
            pages = chunk.fresh[run.start : run.stop]
            durable.rewrite(self._file.fileno(), pages.data, run.offset_bytes)
        behind = np.flatnonzero(~over)
        for start in range(0, len(behind), PAGES_PER_BATCH):  # each is a copy
            part = behind[start : start + PAGES_PER_BATCH]
            self.append(chunk.pfns[rows[part]], types[part], chunk.fresh[part])
        lost = chunk.lost_rows()
        if len(lost):
            none = np.empty((0, FRAME_BYTES), np.uint8)
            self._writer.pages(chunk.pfns[lost], chunk.types[lost], none)
            chunk.offsets[lost] = ABSENT

    def append(self, pfns: Words, types: PageTypes, pages: Pages) -> None:
        """Write those pages that are the domain's, of the tables a canonical copy."""
        for start in range(0, len(pfns), PAGES_PER_BATCH):
            part = slice(start, start + PAGES_PER_BATCH)
            is_owned = TYPE_HAS_DATA[types[part]]
            some_pfns, some_types = pfns[part][is_owned], types[part][is_owned]
            some = pages[part] if is_owned.all() else pages[part][is_owned]
            levels = TYPE_LEVEL[some_types]
            rows = np.flatnonzero(levels)
            if len(rows):
                if not some.flags.writeable:
                    some = some.copy()
                tables = some[rows].view(np.uint64)
                found = self._normaliser.canonicalise(tables, levels[rows], some_pfns[rows])
                if len(found):
                    self.foreign.append(found)
                some[rows] = tables.view(np.uint8)
            if len(some_pfns):
                self._writer.pages(some_pfns, some_types, some)
