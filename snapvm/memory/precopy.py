"""The passes over a guest that runs: its ordinary pages go into the image.

A page that is a table now is left for later, when it cannot change any more.

When the guest stands still it has to be found quickly which pages are no longer as in the image.
Where the host's page cache can hold the image, its pages are mapped into this process as soon as
they are written, while the next are being written: in a paravirtual control domain mapping them
takes as long as writing them.  Where it cannot, a digest of each page is kept, and what has changed
meanwhile is written again, pass by pass, until that is little.  What is changed even then has to
fit into memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Final, TypeVar

import numpy as np
import numpy.typing as npt

from snapvm import durable, retry
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

PASSES: Final = 6
"""At most this many more passes over a guest whose pages are not kept."""
LITTLE_BYTES: Final = 16 << 20
"""So few changed pages are not worth another pass."""
WAIT_SECONDS: Final = 1800.0
"""How long it is waited for memory that another capture has; one that hangs may have it for ever.
"""
_LOOK_SECONDS: Final = 2.0

T = TypeVar("T")


def begun(
    begin: Callable[[], tuple[T, Room]], require_wanted: Callable[[], None], progress: Progress
) -> tuple[T, Room]:
    """Return what ``begin`` does, once there is room or nobody else has it.

    Without room the guest would stand still for minutes, only because another was captured too.
    """
    deadline, is_told = time.monotonic() + WAIT_SECONDS, False
    while True:
        result, room = retry.moving(begin)
        if not room.is_to_come or time.monotonic() > deadline:
            return result, room
        if not is_told:
            progress.phase("waiting for memory that another capture has")
            is_told = True
        time.sleep(_LOOK_SECONDS)
        require_wanted()


class FirstPass:
    """Writes a guest's ordinary pages, chunk by chunk, and notes where they are."""

    def __init__(self, file: BinaryIO, writer: ImageWriter, *, keeps_pages: bool) -> None:
        self._file = file
        self._writer = writer
        self._keeps_pages = keeps_pages

    def write_all(self, chunks: Iterable[Chunk], progress: Progress, total_bytes: int) -> None:
        """Write them, and keep with each chunk what its pages are to be compared with."""
        done_bytes = 0
        with ThreadPoolExecutor(max_workers=1) as beside:
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
            is_whole = int(part[-1]) - int(part[0]) + 1 == len(part)
            pages = live[part[0] : part[-1] + 1] if is_whole else live[part]
            if digests is not None:
                pages = pages.copy()  # what is noted must be what is written
                digests.note(part, pages)
            self._writer.pages(chunk.pfns[part], chunk.types[part], pages)
            chunk.offsets[part] = first + np.arange(len(part)) * FRAME_BYTES
        # A hole at the end would otherwise be beyond it.
        self._file.truncate(self._file.tell())
        return digests or FrameCopies(self._file.fileno(), begin, self._file.tell())

    def _first_page(self, count: int, pfn: int) -> int:
        """Return where the pages of the next record begin; ``pfn`` is one of them.

        They begin where a page of the file does.  Else writing one of them again would change two
        pages of the file by halves, and each half that is not in memory would make the kernel read
        the page from the disk first: twenty times as slow on a fast disk.
        """
        gap_bytes = -(self._file.tell() + head_bytes(count)) % FRAME_BYTES
        if 0 < gap_bytes < LEAST_GAP_BYTES:
            gap_bytes += FRAME_BYTES
        if gap_bytes:
            self._writer.skip(gap_bytes, pfn)
        return self._file.tell() + head_bytes(count)


def write_again(store: FrameStore, file: BinaryIO, progress: Progress) -> None:
    """Write what differs from its digest, until that is little or does not become less."""
    before = total = store.count
    for number in range(1, PASSES + 1):
        progress.phase(f"copying what has changed meanwhile, pass {number}")
        # In the window there is no time to wait for room in memory.
        durable.let_go(file.fileno())
        changed = done = 0
        for chunk in store.chunks:
            store.require_wanted()
            changed += _write_changed(chunk, file)
            done += len(chunk.pfns)
            progress.advance(done * FRAME_BYTES, total * FRAME_BYTES)
        if changed * FRAME_BYTES <= LITTLE_BYTES:
            return
        if changed > before * 3 // 4:
            break
        before = changed
    durable.let_go(file.fileno())


def _write_changed(chunk: Chunk, file: BinaryIO) -> int:
    if chunk.live is None or chunk.runs is None:
        return 0
    digests = chunk.runs.originals
    if not isinstance(digests, PageDigests):
        return 0
    differs = chunk.runs.differing(chunk.live, chunk.offsets, chunk.to_compare())
    for run in runs_of(chunk.offsets, differs):
        pages = chunk.live[run.start : run.stop].copy()  # what is noted must be what is written
        digests.note(slice(run.start, run.stop), pages)
        durable.rewrite(file.fileno(), pages.data, run.offset_bytes)
    return int(differs.sum())
