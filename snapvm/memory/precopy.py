"""Write the ordinary pages of a running guest into its image, in one pass or several.

Page tables are left out: they are written when the guest stands still and cannot change them.

When the guest stands still, the changed pages have to be found quickly.  Where the host's page
cache can hold the image, the written pages are mapped into this process while the next are being
written: in a paravirtual control domain mapping takes as long as writing.  Where it cannot, a
digest of each page is kept, and pages that have changed are written again, pass by pass, until few
are left.  Those that change even then have to fit into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import BinaryIO, Final, TypeVar

import numpy as np
import numpy.typing as npt

from snapvm import durable, retry
from snapvm.clock import Deadline
from snapvm.memory.framecopies import FrameCopies
from snapvm.memory.frameruns import FrameRuns, Pages, runs_of
from snapvm.memory.framestore import Chunk, FrameStore
from snapvm.memory.pagedigests import PageDigests
from snapvm.memory.pagingmode import FRAME_BYTES
from snapvm.memory.xenformat import PAGES_PER_BATCH, PageType
from snapvm.memory.xenimage import ImageWriter
from snapvm.memory.xenwriter import LEAST_GAP_BYTES, head_bytes
from snapvm.memoryroom import Room
from snapvm.model import Progress
from snapvm.workers import workers

PASSES: Final = 6
"""The most passes after the first, over a guest whose pages are known by digests."""
LITTLE_BYTES: Final = 16 << 20
"""If no more than this has changed, another pass is not worth its time."""
WAIT_SECONDS: Final = 1800.0
"""How long to wait for memory that another capture uses; one that hangs may never free it."""
_LOOK_SECONDS: Final = 2.0
_HARDLY_FEWER: Final = 0.75
"""If more than this part of the changes is left after a pass, another one is not worth its time."""

T = TypeVar("T")


def when_there_is_room(
    begin: Callable[[], tuple[T, Room]], require_wanted: Callable[[], None], progress: Progress
) -> tuple[T, Room]:
    """Call ``begin`` until it finds room, or waiting does not help; return its last result.

    Another capture may have the memory for now.  Without it this guest would stand still for
    minutes.
    """
    deadline, is_told = Deadline(WAIT_SECONDS), False
    while True:
        result, room = retry.moving(begin)
        if not room.is_to_come or not deadline.left_seconds:
            return result, room
        if not is_told:
            progress.phase("waiting for memory that another capture has")
            is_told = True
        time.sleep(_LOOK_SECONDS)
        require_wanted()


class FirstPass:
    """Writes a guest's ordinary pages, chunk by chunk, and notes their offsets in the image."""

    def __init__(self, file: BinaryIO, writer: ImageWriter, *, keeps_pages: bool) -> None:
        self._file = file
        self._writer = writer
        self._keeps_pages = keeps_pages

    def write_all(self, chunks: Iterable[Chunk], progress: Progress, total_bytes: int) -> None:
        """Write the pages, and give each chunk the means to compare them later."""
        done_bytes = 0
        with workers(1) as beside:
            for chunk in chunks:
                rows = np.flatnonzero(chunk.types == PageType.NOTAB)
                if chunk.live is not None and len(rows):
                    originals = self._write(chunk, chunk.live, rows)
                    chunk.runs = FrameRuns(originals)
                    if isinstance(originals, FrameCopies):
                        beside.submit(originals.populate)
                done_bytes += len(chunk.pfns) * FRAME_BYTES
                progress.advance(done_bytes, total_bytes)

    def _write(
        self, chunk: Chunk, live: Pages, rows: npt.NDArray[np.intp]
    ) -> FrameCopies | PageDigests:
        digests = None if self._keeps_pages else PageDigests(len(live))
        begin = self._file.tell()
        for start in range(0, len(rows), PAGES_PER_BATCH):
            part = rows[start : start + PAGES_PER_BATCH]
            first = self._first_page(len(part), int(chunk.pfns[part[0]]))
            is_contiguous = int(part[-1]) - int(part[0]) + 1 == len(part)
            pages = live[part[0] : part[-1] + 1] if is_contiguous else live[part]
            if digests is not None:
                pages = pages.copy()  # the digests must be of what is written
                digests.note(part, pages)
            self._writer.pages(chunk.pfns[part], chunk.types[part], pages)
            chunk.offsets[part] = first + np.arange(len(part)) * FRAME_BYTES
        # If the last pages are a hole, the file has to be made as long.
        self._file.truncate(self._file.tell())
        return digests or FrameCopies(self._file.fileno(), begin, self._file.tell())

    def _first_page(self, count: int, pfn: int) -> int:
        """Return where the pages of the next record will begin; ``pfn`` is one of them.

        It is where a page of the file begins.  Otherwise writing one page again would change parts
        of two pages of the file, and the kernel would have to read each of them from the disk
        first, unless it is in memory: twenty times as slow on a fast disk.
        """
        gap_bytes = -(self._file.tell() + head_bytes(count)) % FRAME_BYTES
        if 0 < gap_bytes < LEAST_GAP_BYTES:
            gap_bytes += FRAME_BYTES
        if gap_bytes:
            self._writer.skip(gap_bytes, pfn)
        return self._file.tell() + head_bytes(count)


def write_again(store: FrameStore, file: BinaryIO, progress: Progress) -> None:
    """Write pages that differ from their digest, until there are few, or hardly fewer."""
    total = before = store.count
    for number in range(1, PASSES + 1):
        progress.phase(f"copying the memory that has changed, pass {number}")
        # In the pause there is no time to wait until memory is written to the disk.
        durable.let_go(file.fileno())
        changed = done = 0
        for chunk in store.chunks:
            store.require_wanted()
            changed += _write_changed(chunk, file)
            done += len(chunk.pfns)
            progress.advance(done * FRAME_BYTES, total * FRAME_BYTES)
        if changed * FRAME_BYTES <= LITTLE_BYTES:
            return
        if changed > before * _HARDLY_FEWER:
            break
        before = changed
    durable.let_go(file.fileno())


def _write_changed(chunk: Chunk, file: BinaryIO) -> int:
    """Write the pages of a chunk that differ from their digest again; return how many."""
    if chunk.live is None or chunk.runs is None:
        return 0
    digests = chunk.runs.originals
    if not isinstance(digests, PageDigests):
        return 0
    differs = chunk.runs.differing(chunk.live, chunk.offsets, chunk.to_compare())
    for run in runs_of(chunk.offsets, differs):
        pages = chunk.live[run.start : run.stop].copy()  # the digests must be of what is written
        digests.note(slice(run.start, run.stop), pages)
        durable.rewrite(file.fileno(), pages.data, run.offset_bytes)
    return int(differs.sum())
