"""A guest's frames, mapped while it runs and compared with their copies when it stands still.

The copies are the pages in the image itself, in the host's page cache, or digests stand for them
where that has not the memory.  The frames stay mapped between the passes: mapping a page costs a
paravirtual control domain more than comparing it.  So the last pass, inside the window, reads every
frame once and keeps only what differs from its copy, in memory.  A frame that had changed already
when the guest was still running is not compared then but kept at once: what is written often would
only break the comparison into small pieces.  Chunks are independent, and digests (xxhash),
comparing and copying (numpy) leave Python's lock alone, so that threads share the work.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from snapvm.memory.frameruns import ABSENT, FrameRuns, Marks, Offsets, Pages
from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.xenformat import TYPE_HAS_DATA, PageType, PageTypes
from snapvm.refusals import BadImage
from snapvm.xenguest import TYPE_SHIFT, TYPES_AT_ONCE, GuestFrames, Mapping

CHUNK_FRAMES: Final = 16384
"""Frames mapped by one call: 64 MiB."""
ORIGIN: Final = "the guest's memory"
"""What ``BadImage`` calls what is read here."""
_MAX_THREADS: Final = 4
_SPARE_PART: Final = 8
"""One part in so many more is made ready than was needed while the guest ran."""

T = TypeVar("T")


def room_for(frames: int) -> Pages:
    """Return memory for the pages of so many frames.

    It is shared, so that a fork, of an lvm, does not make each page's first write a fault.
    """
    if not frames:
        return np.empty((0, FRAME_BYTES), np.uint8)
    return np.frombuffer(mmap.mmap(-1, frames * FRAME_BYTES), np.uint8).reshape(-1, FRAME_BYTES)


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
    runs: FrameRuns | None = None
    """What tells which frames are as the image has them, if it has any."""
    is_hot: Marks
    """Which frames changed while the guest ran, after they were copied."""
    fresh_rows: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Which frames have to be written (again)."""
    room: Pages = field(default_factory=lambda: room_for(0))
    """Memory to keep frames in."""

    @property
    def fresh(self) -> Pages:
        """What stood in the ``fresh_rows`` in the window."""
        return self.room[: len(self.fresh_rows)]

    def to_compare(self) -> Marks:
        """Mark the frames that may be as the image has them."""
        is_copied: Marks = (self.types == PageType.NOTAB) & (self.offsets != ABSENT)
        return is_copied & ~self.is_hot

    def lost_rows(self) -> npt.NDArray[np.intp]:
        """Say which frames have a page in the image and are the guest's no more."""
        return np.flatnonzero(~TYPE_HAS_DATA[self.types] & (self.offsets != ABSENT))

    def keep(self, live: Pages, rows: npt.NDArray[np.intp]) -> None:
        """Copy frames of the mapping ``live``, into the memory of the last time if that is enough.

        Fresh memory costs a paravirtual control domain several times what the copying does.
        """
        if len(rows) > len(self.room):
            self.room = room_for(len(rows) + len(rows) // _SPARE_PART)
        self.fresh_rows = rows
        # Indices are in range; the default mode would copy by way of a buffer to be sure of that.
        np.take(live, rows, axis=0, out=self.fresh, mode="clip")

    def forget_kept(self) -> None:
        """Give back the memory of what was kept."""
        self.fresh_rows = np.empty(0, np.intp)
        self.room = room_for(0)

    def give_back(self) -> None:
        """End the mapping; harmless when there is none."""
        if self.live is not None:
            # The array goes first: touching it after the unmapping would be a crash.
            self.live = None
            self.mapping.close()
        if self.runs is not None:
            self.runs.close()
            self.runs = None


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


def map_chunk(frames: GuestFrames, pfns: Words, mfns: Words, *, stands_still: bool) -> Chunk | None:
    """Map frames; those that are not there are left out. None when none is.

    Raises ``BadImage`` for one that is not there when the guest ``stands_still`` and owns it.
    """
    while len(mfns):
        mapping = frames.map(np.ascontiguousarray(mfns).data)
        if not mapping.missing:
            break
        mapping.close()
        missing = np.array(mapping.missing)
        if stands_still:
            _require_anothers(frames, mfns[missing])
        pfns, mfns = np.delete(pfns, missing), np.delete(mfns, missing)
    else:
        return None
    live = np.frombuffer(mapping.view, np.uint8).reshape(-1, FRAME_BYTES)
    live.flags.writeable = False  # as the mapping is: to write there would be a crash
    return Chunk(
        pfns=pfns,
        mfns=mfns,
        types=types_of(frames, mfns),
        mapping=mapping,
        live=live,
        offsets=np.full(len(mfns), ABSENT, np.int64),
        is_hot=np.zeros(len(mfns), np.bool_),
    )


def _require_anothers(frames: GuestFrames, mfns: Words) -> None:
    own = mfns[TYPE_HAS_DATA[types_of(frames, mfns)]]
    if len(own):
        why = f"machine frame {int(own[0]):#x} is the guest's and cannot be mapped"
        raise BadImage(path=ORIGIN, offset_bytes=0, why=why)


Seen = Callable[[Sequence[Chunk]], None]
"""Called with all chunks that have been looked at again so far, before more is kept."""


class FrameStore:
    """All frames of a guest that are mapped."""

    def __init__(self, frames: GuestFrames) -> None:
        self._frames = frames
        self.chunks: list[Chunk] = []
        self.given_up = threading.Event()
        """Whoever works on chunks ends at the next one, by ``BadImage``, when it is set."""
        self._gone: list[Words] = []
        """The PFNs of pages in the image that the last look found to be none any more."""
        self.room_bytes: int | None = None
        """How much memory it may keep pages in; None when that is as much as it needs."""

    @property
    def count(self) -> int:
        """How many frames are held."""
        return sum(len(chunk.pfns) for chunk in self.chunks)

    @property
    def is_full(self) -> bool:
        """What it keeps has to be written or forgotten, before more is kept."""
        if self.room_bytes is None:
            return False
        return 2 * sum(chunk.room.nbytes for chunk in self.chunks) > self.room_bytes

    def add(self, pfns: Words, mfns: Words, *, stands_still: bool = False) -> Iterator[Chunk]:
        """Map frames, chunk by chunk, and keep them mapped; see `map_chunk`."""
        for start in range(0, len(pfns), CHUNK_FRAMES):
            self.require_wanted()
            part = slice(start, start + CHUNK_FRAMES)
            chunk = map_chunk(self._frames, pfns[part], mfns[part], stands_still=stands_still)
            if chunk is not None:
                self.chunks.append(chunk)
                yield chunk

    def rehearse(self, entries: Words) -> None:
        """Do while the guest runs what the window will do, and note which frames it writes.

        The memory that it keeps them in is at hand then, and digests of the others' copies.
        """

        def note(chunks: Sequence[Chunk]) -> None:
            for chunk in chunks:
                chunk.is_hot[chunk.fresh_rows] = True
                if self.is_full:
                    chunk.forget_kept()

        self.refresh(entries, note, stands_still=False)
        self._each(self._remember)

    def refresh(self, entries: Words, seen: Seen, *, stands_still: bool) -> int:
        """Look at every frame again; keep what the image has not, and return how many.

        ``entries`` is the guest's p2m as it is now: a frame that has another PFN by now or
        none gets the type XTAB, and one that the store has not is added.
        """
        held = np.zeros(len(entries), np.bool_)
        self._gone = []

        def one(chunk: Chunk) -> int:
            self.require_wanted()
            inside = chunk.pfns < np.uint64(len(entries))
            same = np.zeros(len(chunk.pfns), np.bool_)
            same[inside] = entries[chunk.pfns[inside]] == chunk.mfns[inside]
            held[chunk.pfns[same]] = True
            types = types_of(self._frames, chunk.mfns)
            chunk.types = np.where(same, types, np.uint8(PageType.XTAB))
            self._gone.append(chunk.pfns[chunk.lost_rows()])
            return _keep_fresh(chunk)

        changed = sum(self._each(one, seen))
        late = np.flatnonzero(~held & (entries < np.uint64(self._frames.max_mfn))).astype(np.uint64)
        for chunk in self.add(late, entries[late], stands_still=stands_still):
            changed += _keep_fresh(chunk)
            seen(self.chunks)
        return changed

    def count_restored(self, owned: Marks) -> int:
        """Return how many PFNs a restore gives a frame: those ``owned``, and those that once were.

        Of these the image has a page, and says behind it that there is none.
        """
        gone = np.unique(np.concatenate([np.empty(0, np.uint64), *self._gone]))
        inside = gone[gone < np.uint64(len(owned))]
        return int(owned.sum()) + len(gone) - int(owned[inside].sum())

    def require_wanted(self) -> None:
        """Raise ``BadImage`` when it was given up, ``WindowBroken`` when the guest has ended."""
        if self.given_up.is_set():
            raise BadImage(path="its image", offset_bytes=0, why="it was given up")
        self._frames.require_there()

    def _remember(self, chunk: Chunk) -> None:
        self.require_wanted()
        if chunk.runs is not None and chunk.live is not None:
            chunk.runs.remember(chunk.live, chunk.offsets, chunk.to_compare())

    def _each(self, work: Callable[[Chunk], T], seen: Seen | None = None) -> list[T]:
        """Work on all chunks; on no more at once, where room is short, than it has room for."""
        results: list[T] = []
        chunks, at_once = self.chunks, max(1, len(self.chunks))
        if self.room_bytes is not None:
            at_once = max(1, self.room_bytes // 2 // (CHUNK_FRAMES * FRAME_BYTES))
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            for at in range(0, len(chunks), at_once):
                results += pool.map(work, chunks[at : at + at_once])
                if seen is not None:
                    seen(chunks[: at + at_once])
        return results

    def give_back(self) -> None:
        """End all mappings; what was kept stays."""
        for chunk in self.chunks:
            chunk.give_back()

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """End all mappings beside what the block does with what was kept."""
        with ThreadPoolExecutor(max_workers=1) as beside:
            ended = [beside.submit(chunk.give_back) for chunk in self.chunks]
            yield
        for one in ended:
            one.result()


def _keep_fresh(chunk: Chunk) -> int:
    """Copy the frames of a chunk that the image lacks, or has otherwise; return how many.

    Only ordinary pages are compared: a table is never in the image as the guest has it.
    """
    live = chunk.live
    if live is None:
        return 0
    wanted, compared = TYPE_HAS_DATA[chunk.types], chunk.to_compare()
    differs = np.zeros(len(live), np.bool_)
    if chunk.runs is not None:
        differs = chunk.runs.differing(live, chunk.offsets, compared)
    chunk.keep(live, np.flatnonzero(wanted & (differs | ~compared)))
    return len(chunk.fresh_rows)
