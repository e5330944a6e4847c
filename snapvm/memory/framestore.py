"""A guest's frames, mapped while it runs and compared with their copies when it stands still.

The copies are the pages in the image itself, most of them in the host's page cache.  The frames
stay mapped between the two passes: mapping a page costs a paravirtual control domain more than
comparing it.  So the second pass, inside the window, reads every frame and its copy once and keeps
only what differs, in memory.  Chunks are independent, and reading, comparing (memcmp) and copying
(numpy) leave Python's lock alone, so that threads share the work.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.xenformat import PageType, PageTypes
from snapvm.xenguest import TYPE_SHIFT, TYPES_AT_ONCE, GuestFrames, Mapping

CHUNK_FRAMES: Final = 4096
"""Frames mapped by one call: 16 MiB."""
_GROUP_FRAMES: Final = 16
"""Frames compared by one call, to keep the interpreter's part of the time small."""
_MAX_THREADS: Final = 4
ABSENT: Final = 0
"""The offset of a frame of which the image has no page."""

Pages = npt.NDArray[np.uint8]
"""Shape (n, 4096)."""
Offsets = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]

# CDLL releases Python's lock for the call, PyDLL would not.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


@dataclass(slots=True, kw_only=True)
class Chunk:
    """Frames that were mapped together, where the image has them, and what they are."""

    pfns: Words
    mfns: Words
    types: PageTypes
    mapping: Mapping
    live: Pages | None
    """The mapped frames; None when the mapping has been given back."""
    offsets: Offsets
    """Where in the image each frame's page is, or `ABSENT`."""
    fresh_rows: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Which frames have to be written (again), and what stood in them in the window."""
    fresh: Pages = field(default_factory=lambda: np.empty((0, FRAME_BYTES), np.uint8))

    def give_back(self) -> None:
        """End the mapping; harmless when there is none."""
        if self.live is not None:
            # The array goes first: touching it after the unmapping would be a crash.
            self.live = None
            self.mapping.close()


def words(view: memoryview) -> Words:
    """Look at mapped memory as 64-bit words."""
    return np.frombuffer(view, np.uint64)


def types_of(frames: GuestFrames, mfns: Words) -> PageTypes:
    """Ask Xen what frames are."""
    parts = [
        words(frames.types(mfns[start : start + TYPES_AT_ONCE].data))
        for start in range(0, len(mfns), TYPES_AT_ONCE)
    ]
    return (np.concatenate(parts) >> np.uint64(TYPE_SHIFT) & np.uint64(0xF)).astype(np.uint8)


def map_chunk(frames: GuestFrames, pfns: Words, mfns: Words) -> Chunk | None:
    """Map frames; those that are not there are left out. None when none is."""
    while len(mfns):
        mapping = frames.map(np.ascontiguousarray(mfns).data)
        if not mapping.missing:
            break
        mapping.close()
        missing = np.array(mapping.missing)
        pfns, mfns = np.delete(pfns, missing), np.delete(mfns, missing)
    else:
        return None
    return Chunk(
        pfns=pfns,
        mfns=mfns,
        types=types_of(frames, mfns),
        mapping=mapping,
        live=np.frombuffer(mapping.view, np.uint8).reshape(-1, FRAME_BYTES),
        offsets=np.full(len(mfns), ABSENT, np.int64),
    )


class FrameStore:
    """All frames of a guest that are mapped."""

    def __init__(self, frames: GuestFrames) -> None:
        self._frames = frames
        self.chunks: list[Chunk] = []

    @property
    def count(self) -> int:
        """How many frames are held."""
        return sum(len(chunk.pfns) for chunk in self.chunks)

    def add(self, pfns: Words, mfns: Words) -> Iterator[Chunk]:
        """Map frames, chunk by chunk, and keep them mapped."""
        for start in range(0, len(pfns), CHUNK_FRAMES):
            part = slice(start, start + CHUNK_FRAMES)
            chunk = map_chunk(self._frames, pfns[part], mfns[part])
            if chunk is not None:
                self.chunks.append(chunk)
                yield chunk

    def refresh(self, entries: Words, image: int) -> int:
        """Look at every frame again; keep what ``image``, a descriptor, has not; return how many.

        ``entries`` is the guest's p2m as it stands still: a frame that has another PFN by now or
        none gets the type XTAB, and one that the store has not is added.
        """
        held = np.zeros(len(entries), np.bool_)

        def one(chunk: Chunk) -> int:
            inside = chunk.pfns < np.uint64(len(entries))
            same = np.zeros(len(chunk.pfns), np.bool_)
            same[inside] = entries[chunk.pfns[inside]] == chunk.mfns[inside]
            held[chunk.pfns[same]] = True
            types = types_of(self._frames, chunk.mfns)
            chunk.types = np.where(same, types, np.uint8(PageType.XTAB))
            return _keep_fresh(chunk, image)

        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            changed = sum(pool.map(one, self.chunks))
        late = np.flatnonzero(~held & (entries < np.uint64(self._frames.max_mfn))).astype(np.uint64)
        return changed + sum(_keep_fresh(chunk, image) for chunk in self.add(late, entries[late]))

    def give_back(self) -> None:
        """End all mappings; what was kept stays."""
        for chunk in self.chunks:
            chunk.give_back()


def _keep_fresh(chunk: Chunk, image: int) -> int:
    """Copy the frames of a chunk that the image lacks, or has otherwise; return how many.

    Only ordinary pages are compared: a table is never in the image as the guest has it.
    """
    live = chunk.live
    if live is None:
        return 0
    wanted = chunk.types != PageType.XTAB
    compared = wanted & (chunk.types == PageType.NOTAB) & (chunk.offsets != ABSENT)
    differs = _differing(live, chunk.offsets, compared, image)
    chunk.fresh_rows = np.flatnonzero(wanted & (differs | ~compared))
    chunk.fresh = live[chunk.fresh_rows]
    return len(chunk.fresh_rows)


def _differing(live: Pages, offsets: Offsets, compared: Marks, image: int) -> Marks:
    """Mark those of the compared frames that differ from their page in the image."""
    differs = np.zeros(len(live), np.bool_)
    buffer = np.empty((_GROUP_FRAMES, FRAME_BYTES), np.uint8)
    live_at, buffer_at = live.ctypes.data, buffer.ctypes.data
    for start, stop in _runs(offsets, compared):
        length_bytes = (stop - start) * FRAME_BYTES
        _read_into(image, buffer[: stop - start], int(offsets[start]))
        if _memcmp(live_at + start * FRAME_BYTES, buffer_at, length_bytes):
            rows = live[start:stop].view(np.uint64) != buffer[: stop - start].view(np.uint64)
            differs[start:stop] = rows.any(axis=1)
    return differs


def _runs(offsets: Offsets, compared: Marks) -> Iterator[tuple[int, int]]:
    """Give runs of at most `_GROUP_FRAMES` frames that lie side by side in the image."""
    rows = np.flatnonzero(compared)
    if not len(rows):
        return
    goes_on = (np.diff(rows) == 1) & (np.diff(offsets[rows]) == FRAME_BYTES)
    ends = [*(np.flatnonzero(~goes_on) + 1).tolist(), len(rows)]
    first = 0
    for end in ends:
        row, last = int(rows[first]), int(rows[end - 1]) + 1
        for start in range(row, last, _GROUP_FRAMES):
            yield start, min(start + _GROUP_FRAMES, last)
        first = end


def _read_into(image: int, buffer: Pages, offset_bytes: int) -> None:
    view: memoryview = buffer.reshape(-1).data
    while view.nbytes:
        count = os.preadv(image, [view], offset_bytes)
        if not count:
            raise OSError(f"the image ends at byte {offset_bytes} while it is compared")
        view, offset_bytes = view[count:], offset_bytes + count
