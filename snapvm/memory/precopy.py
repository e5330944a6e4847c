"""The first pass over a guest that runs: its ordinary pages go into the image.

A page that is a table now is left for later, when it cannot change any more.  The pages written are
mapped where they are in the image at once, beside the writing of the next: to enter them in this
process's page tables costs a paravirtual control domain as much as writing them.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from snapvm.memory.framecopies import FrameCopies
from snapvm.memory.framestore import Chunk
from snapvm.memory.pagingmode import FRAME_BYTES
from snapvm.memory.xenformat import PAGE_COUNT, PAGES_PER_BATCH, RECORD_HEADER, PageType
from snapvm.memory.xenimage import ImageWriter
from snapvm.model import Progress

SPARE_BYTES: Final = 128 << 20
"""What the host keeps for itself when its page cache is to hold a guest."""


def too_large(needed_bytes: int, budget_bytes: int | None = None) -> str:
    """Return why so much memory does not fit the budget, or what the host can spare; or nothing."""
    if budget_bytes is None:
        budget_bytes = max(available_bytes() - SPARE_BYTES, 0)
    if needed_bytes <= budget_bytes:
        return ""
    needed, spare = needed_bytes >> 20, budget_bytes >> 20
    return f"its {needed} MiB did not fit the {spare} MiB of memory this host could spare"


def available_bytes() -> int:
    """Return how much memory the host can give without swapping (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def write_all(
    chunks: Iterable[Chunk],
    file: BinaryIO,
    writer: ImageWriter,
    progress: Progress,
    total_bytes: int,
) -> None:
    """Write the chunks' ordinary pages, note in each where they are, and map them there."""
    done_bytes = 0
    with ThreadPoolExecutor(max_workers=1) as beside:
        for chunk in chunks:
            _write(chunk, file, writer)
            if chunk.copies is not None:
                beside.submit(chunk.copies.populate)
            done_bytes += len(chunk.pfns) * FRAME_BYTES
            progress.advance(done_bytes, total_bytes)


def _write(chunk: Chunk, file: BinaryIO, writer: ImageWriter) -> None:
    rows = np.flatnonzero(chunk.types == PageType.NOTAB)
    if chunk.live is None or not len(rows):
        return
    begin = file.tell()
    for start in range(0, len(rows), PAGES_PER_BATCH):
        part = rows[start : start + PAGES_PER_BATCH]
        head_bytes = RECORD_HEADER.size + PAGE_COUNT.size + 8 * len(part)
        first = file.tell() + head_bytes
        is_whole = int(part[-1]) - int(part[0]) + 1 == len(part)
        pages = chunk.live[part[0] : part[-1] + 1] if is_whole else chunk.live[part]
        writer.pages(chunk.pfns[part], chunk.types[part], pages)
        chunk.offsets[part] = first + np.arange(len(part)) * FRAME_BYTES
    # A hole at the end would otherwise be beyond it.
    file.truncate(file.tell())
    chunk.copies = FrameCopies(file.fileno(), begin, file.tell())
