"""Copies of a guest's frames, made while it runs and brought up to date when it stands still.

The frames stay mapped between the two passes: mapping a page costs a paravirtual control domain
more than comparing it.  So the second pass, inside the window, reads every frame and its copy once
and writes only what differs.  Chunks are independent, and the comparison (memcmp) and the copying
(numpy) leave Python's lock alone, so that threads share the work.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

Pages = npt.NDArray[np.uint8]
"""Shape (n, 4096)."""

# CDLL releases Python's lock for the call, PyDLL would not.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


@dataclass(slots=True, kw_only=True)
class Chunk:
    """Frames that were mapped together, their copies, and what they are."""

    pfns: Words
    mfns: Words
    copies: Pages
    types: PageTypes
    mapping: Mapping
    live: Pages | None
    """The mapped frames; None when the mapping has been given back."""

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
    """Map frames and copy them; those that are not there are left out. None when none is."""
    while len(mfns):
        mapping = frames.map(np.ascontiguousarray(mfns).data)
        if not mapping.missing:
            break
        mapping.close()
        missing = np.array(mapping.missing)
        pfns, mfns = np.delete(pfns, missing), np.delete(mfns, missing)
    else:
        return None
    live: Pages = np.frombuffer(mapping.view, np.uint8).reshape(-1, FRAME_BYTES)
    return Chunk(
        pfns=pfns,
        mfns=mfns,
        copies=live.copy(),
        types=np.full(len(mfns), PageType.XTAB, np.uint8),
        mapping=mapping,
        live=live,
    )


class FrameStore:
    """All frames of a guest that were copied."""

    def __init__(self, frames: GuestFrames) -> None:
        self._frames = frames
        self.chunks: list[Chunk] = []

    @property
    def count(self) -> int:
        """How many frames are held."""
        return sum(len(chunk.pfns) for chunk in self.chunks)

    def add(self, pfns: Words, mfns: Words) -> Iterable[int]:
        """Map and copy frames; give how many were done after each chunk."""
        for start in range(0, len(pfns), CHUNK_FRAMES):
            stop = start + CHUNK_FRAMES
            chunk = map_chunk(self._frames, pfns[start:stop], mfns[start:stop])
            if chunk is not None:
                self.chunks.append(chunk)
            yield min(stop, len(pfns))

    def refresh(self, entries: Words) -> int:
        """Bring every copy and type up to date; return how many frames had to be copied.

        ``entries`` is the guest's p2m as it stands still: a frame that has another PFN by now or
        none gets the type XTAB, and one that the store has not is added.
        """
        held = np.zeros(len(entries), np.bool_)

        def one(chunk: Chunk) -> int:
            inside = chunk.pfns < np.uint64(len(entries))
            same = np.zeros(len(chunk.pfns), np.bool_)
            same[inside] = entries[chunk.pfns[inside]] == chunk.mfns[inside]
            held[chunk.pfns[same]] = True
            chunk.types = np.where(same, types_of(self._frames, chunk.mfns), PageType.XTAB)
            chunk.types = chunk.types.astype(np.uint8)
            return _update(chunk)

        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            changed = sum(pool.map(one, self.chunks))
        late = np.flatnonzero(~held & (entries < np.uint64(self._frames.max_mfn))).astype(np.uint64)
        first = len(self.chunks)
        for _ in self.add(late, entries[late]):
            pass
        for chunk in self.chunks[first:]:
            chunk.types = types_of(self._frames, chunk.mfns)
            changed += len(chunk.pfns)
        return changed

    def give_back(self) -> None:
        """End all mappings; the copies stay."""
        for chunk in self.chunks:
            chunk.give_back()


def _update(chunk: Chunk) -> int:
    """Copy the frames of a chunk that have changed; return how many."""
    live, copies = chunk.live, chunk.copies
    changed = 0
    if live is None:
        return changed
    live_at, copies_at = live.ctypes.data, copies.ctypes.data
    for start in range(0, len(live), _GROUP_FRAMES):
        stop = min(start + _GROUP_FRAMES, len(live))
        offset_bytes = start * FRAME_BYTES
        length_bytes = (stop - start) * FRAME_BYTES
        if not _memcmp(live_at + offset_bytes, copies_at + offset_bytes, length_bytes):
            continue
        fresh = live[start:stop]
        differs = (fresh.view(np.uint64) != copies[start:stop].view(np.uint64)).any(axis=1)
        copies[start:stop][differs] = fresh[differs]
        changed += int(differs.sum())
    return changed
