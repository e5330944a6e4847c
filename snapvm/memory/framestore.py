"""A guest's frames: mapped while it runs, and compared with the image while it stands still.

A frame is compared with its page in the image, in the host's page cache, or with a digest where the
page cache has not enough memory.  Frames stay mapped between the passes, because a paravirtual
control domain takes longer to map a page than to compare it.  So the last pass, in the pause, reads
each frame once and keeps in memory only what differs from the image.  A frame that had already
changed while the guest ran is kept without comparing: a frame that is written often would only
break the comparison into small runs.  Chunks are independent of each other, and digests (xxhash),
comparisons and copies (numpy) release Python's lock, so that threads share the work.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from snapvm.memory.frameruns import ABSENT, FrameRuns, Offsets, Pages
from snapvm.memory.pagingmode import FRAME_BYTES, Marks, Words
from snapvm.memory.xenformat import TYPE_HAS_DATA, PageType, PageTypes
from snapvm.refusals import BadImage
from snapvm.workers import workers
from snapvm.xenguest import TYPE_SHIFT, TYPES_AT_ONCE, GuestFrames, Mapping

CHUNK_FRAMES: Final = 16384
"""How many frames one call maps: 64 MiB."""
ORIGIN: Final = "the guest's memory"
"""The path in a ``BadImage`` about what is read here."""
_MAX_THREADS: Final = 4
_CLAIMED_MORE: Final = 1 << 16
"""A guest may claim twice the frames that it has, and this many (256 MiB) besides."""
_SPARE_PART: Final = 8
"""An eighth more memory is kept ready than a chunk needed last time."""

T = TypeVar("T")


def room_for(frames: int) -> Pages:
    """Return memory for the pages of ``frames`` frames.

    It is shared memory: in private memory the first write to each page after a fork, such as that
    of an lvm, would fault.
    """
    if not frames:
        return np.empty((0, FRAME_BYTES), np.uint8)
    return np.frombuffer(mmap.mmap(-1, frames * FRAME_BYTES), np.uint8).reshape(-1, FRAME_BYTES)


@dataclass(slots=True, kw_only=True)
class Chunk:
    """Frames that were mapped together, with their types and where their pages are in the image."""

    pfns: Words
    mfns: Words
    types: PageTypes
    mapping: Mapping
    live: Pages | None
    """The mapped frames; None when the mapping has been given back."""
    offsets: Offsets
    """The offset of each frame's page in the image, or `ABSENT`."""
    runs: FrameRuns | None = None
    """Compares the frames with the image; None when the image has none of them."""
    is_hot: Marks
    """Which frames changed while the guest ran, after their page was written."""
    fresh_rows: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    """Which frames have to be written, for the first time or again."""
    room: Pages = field(default_factory=lambda: room_for(0))
    """Memory for the contents of the ``fresh_rows``."""

    @property
    def fresh(self) -> Pages:
        """The contents of the ``fresh_rows`` when they were kept."""
        return self.room[: len(self.fresh_rows)]

    def to_compare(self) -> Marks:
        """Mark the frames that may equal their page in the image."""
        is_copied: Marks = (self.types == PageType.NOTAB) & (self.offsets != ABSENT)
        return is_copied & ~self.is_hot

    def lost_rows(self) -> npt.NDArray[np.intp]:
        """Return the rows of frames that have a page in the image but are no longer the guest's."""
        return np.flatnonzero(~TYPE_HAS_DATA[self.types] & (self.offsets != ABSENT))

    def keep(self, live: Pages, rows: npt.NDArray[np.intp]) -> None:
        """Copy rows of ``live``, the mapped frames, into memory.

        Memory of the last time is used again where it is enough: in a paravirtual control domain
        new memory takes several times as long as the copying.
        """
        if len(rows) > len(self.room):
            self.room = room_for(len(rows) + len(rows) // _SPARE_PART)
        self.fresh_rows = rows
        # Indices are in range, but the default mode would use a buffer to allow for others.
        np.take(live, rows, axis=0, out=self.fresh, mode="clip")

    def forget_kept(self) -> None:
        """Give back the memory of the kept frames."""
        self.fresh_rows = np.empty(0, np.intp)
        self.room = room_for(0)

    def give_back(self) -> None:
        """End the mapping; harmless when there is none."""
        if self.live is not None:
            # The array is dropped first: to touch it after the unmapping would be a crash.
            self.live = None
            self.mapping.close()
        if self.runs is not None:
            self.runs.close()
            self.runs = None


def words(view: memoryview) -> Words:
    """Return mapped memory as an array of 64-bit words."""
    return np.frombuffer(view, np.uint64)


def types_of(frames: GuestFrames, mfns: Words) -> PageTypes:
    """Ask Xen for the types of frames."""
    parts = [
        words(frames.types(mfns[start : start + TYPES_AT_ONCE].data))
        for start in range(0, len(mfns), TYPES_AT_ONCE)
    ]
    return (np.concatenate(parts) >> np.uint64(TYPE_SHIFT) & np.uint64(0xF)).astype(np.uint8)


def map_chunk(frames: GuestFrames, pfns: Words, mfns: Words, *, stands_still: bool) -> Chunk | None:
    """Map frames, without those that cannot be mapped; return None when that leaves none.

    Raises ``BadImage`` when the guest ``stands_still`` and owns a frame that cannot be mapped.
    """
    while len(mfns):
        mapping = frames.map(np.ascontiguousarray(mfns).data)
        if not mapping.missing:
            break
        mapping.close()
        missing = np.array(mapping.missing)
        if stands_still:
            _require_not_owned(frames, mfns[missing])
        pfns, mfns = np.delete(pfns, missing), np.delete(mfns, missing)
    else:
        return None
    live = np.frombuffer(mapping.view, np.uint8).reshape(-1, FRAME_BYTES)
    live.flags.writeable = False  # the mapping is read-only, and to write to it would be a crash
    return Chunk(
        pfns=pfns,
        mfns=mfns,
        types=types_of(frames, mfns),
        mapping=mapping,
        live=live,
        offsets=np.full(len(mfns), ABSENT, np.int64),
        is_hot=np.zeros(len(mfns), np.bool_),
    )


def require_plausible(frames: GuestFrames, claimed: int) -> None:
    """Raise ``BadImage`` for a guest that claims far more frames than Xen has given it.

    Its p2m may name one frame at any number of PFNs, each of which would be a page of the image.
    """
    has = frames.frame_count()
    if claimed > 2 * has + _CLAIMED_MORE:
        why = f"its table of frames names {claimed} of them, and it has {has}"
        raise BadImage(path=ORIGIN, offset_bytes=0, why=why)


def _require_not_owned(frames: GuestFrames, mfns: Words) -> None:
    own = mfns[TYPE_HAS_DATA[types_of(frames, mfns)]]
    if len(own):
        why = f"machine frame {int(own[0]):#x} is the guest's and cannot be mapped"
        raise BadImage(path=ORIGIN, offset_bytes=0, why=why)


Seen = Callable[[Sequence[Chunk]], None]
"""Called with all chunks that have been refreshed so far, before more frames are kept."""


class FrameStore:
    """All mapped frames of a guest."""

    def __init__(self, frames: GuestFrames) -> None:
        self._frames = frames
        self.chunks: list[Chunk] = []
        self.given_up = threading.Event()
        """When it is set, work on chunks ends by ``BadImage`` before the next chunk."""
        self._gone: list[Words] = []
        """PFNs that have a page in the image and, at the last refresh, no frame any more."""
        self.room_bytes: int | None = None
        """How much memory kept pages may take; None when there is no limit."""

    @property
    def count(self) -> int:
        """How many frames are mapped."""
        return sum(len(chunk.pfns) for chunk in self.chunks)

    @property
    def is_full(self) -> bool:
        """Whether kept pages have to be written or forgotten before more are kept.

        They may take half of the room.  The other half is for the chunks that are worked on at
        once: before they are done nobody knows how many of their pages will be kept.
        """
        if self.room_bytes is None:
            return False
        return sum(chunk.room.nbytes for chunk in self.chunks) > self.room_bytes // 2

    def add(self, pfns: Words, mfns: Words, *, stands_still: bool = False) -> Iterator[Chunk]:
        """Map frames and keep them mapped; yield chunk by chunk.

        Raises as `require_plausible` and `map_chunk` do.
        """
        if len(pfns):
            require_plausible(self._frames, len(pfns))
        for start in range(0, len(pfns), CHUNK_FRAMES):
            self.require_wanted()
            part = slice(start, start + CHUNK_FRAMES)
            chunk = map_chunk(self._frames, pfns[part], mfns[part], stands_still=stands_still)
            if chunk is not None:
                self.chunks.append(chunk)
                yield chunk

    def rehearse(self, entries: Words) -> None:
        """Do now what the pause will do, to note which frames the running guest writes.

        Afterwards memory for those frames is ready, and digests of all other pages.
        """

        def mark_hot(chunks: Sequence[Chunk]) -> None:
            for chunk in chunks:
                chunk.is_hot[chunk.fresh_rows] = True
                if self.is_full:
                    chunk.forget_kept()

        self.refresh(entries, mark_hot, stands_still=False)
        self._each(self._remember)

    def refresh(self, entries: Words, seen: Seen, *, stands_still: bool) -> int:
        """Compare every frame with the image; keep those that differ, and return how many.

        ``entries`` is the guest's p2m as it is now.  A frame that has lost its PFN, or got another,
        gets the type XTAB; a frame that is not mapped yet is added.
        """
        held = np.zeros(len(entries), np.bool_)
        self._gone = []

        def refresh_chunk(chunk: Chunk) -> int:
            self.require_wanted()
            inside = chunk.pfns < np.uint64(len(entries))
            same = np.zeros(len(chunk.pfns), np.bool_)
            same[inside] = entries[chunk.pfns[inside]] == chunk.mfns[inside]
            held[chunk.pfns[same]] = True
            types = types_of(self._frames, chunk.mfns)
            chunk.types = np.where(same, types, np.uint8(PageType.XTAB))
            self._gone.append(chunk.pfns[chunk.lost_rows()])
            return _keep_fresh(chunk)

        changed = sum(self._each(refresh_chunk, seen))
        late = np.flatnonzero(~held & (entries < np.uint64(self._frames.max_mfn))).astype(np.uint64)
        for chunk in self.add(late, entries[late], stands_still=stands_still):
            changed += _keep_fresh(chunk)
            seen(self.chunks)
        return changed

    def count_restored(self, owned: Marks) -> int:
        """Return how many PFNs a restore gives a frame: the ``owned`` ones, and former ones.

        A PFN that has lost its frame still has a page in the image, before the entry that says so;
        a restore that comes to the entry has given it a frame by then.
        """
        gone = np.unique(np.concatenate([np.empty(0, np.uint64), *self._gone]))
        inside = gone[gone < np.uint64(len(owned))]
        return int(owned.sum()) + len(gone) - int(owned[inside].sum())

    def require_wanted(self) -> None:
        """Raise ``BadImage`` if the image was given up, ``WindowBroken`` if the guest has ended."""
        if self.given_up.is_set():
            raise BadImage(path="its image", offset_bytes=0, why="it was given up")
        self._frames.require_there()

    def _remember(self, chunk: Chunk) -> None:
        self.require_wanted()
        if chunk.runs is not None and chunk.live is not None:
            chunk.runs.remember(chunk.live, chunk.offsets, chunk.to_compare())

    def _each(self, work: Callable[[Chunk], T], seen: Seen | None = None) -> list[T]:
        """Work on all chunks in threads, on no more at once than half of the room can take."""
        results: list[T] = []
        chunks, at_once = self.chunks, max(1, len(self.chunks))
        if self.room_bytes is not None:
            at_once = max(1, self.room_bytes // 2 // (CHUNK_FRAMES * FRAME_BYTES))
        with workers(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            for at in range(0, len(chunks), at_once):
                results += pool.map(work, chunks[at : at + at_once])
                if seen is not None:
                    seen(chunks[: at + at_once])
        return results

    def give_back(self) -> None:
        """End all mappings; the kept frames stay."""
        for chunk in self.chunks:
            chunk.give_back()

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """End all mappings, in a thread beside the block, which works on the kept frames."""
        with workers(1) as beside:
            ended = [beside.submit(chunk.give_back) for chunk in self.chunks]
            yield
        for one in ended:
            one.result()


def _keep_fresh(chunk: Chunk) -> int:
    """Keep the frames of a chunk that differ from the image or are not in it; return how many.

    Only ordinary pages are compared, because the image has page tables in another form.
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
