"""Capture the memory of a running 64-bit Xen PV guest in an xl image.

`GuestCapture.prepare` writes the guest's ordinary pages while it runs.  `rehearse` makes ready what
the pause will need.  `catch`, in the pause, keeps in memory the pages that have changed since, and
everything that is valid only then: types, page tables, the p2m, the owners of frames, the vCPUs.
`write` puts that into the file when the guest runs again: changed pages over the old ones, and page
tables, made canonical, behind them.  Nothing is decided by what was read while the guest ran: in
the pause the p2m is read again, and a frame that has moved is written again.

Pages are compared with the image, which is quick while the host's page cache holds it.  A host
without memory for that, or whose file system maps no file, keeps a digest of each page, and in
`catch` writes to the file what has changed and does not fit into memory.  A host without memory
even for digests writes all pages in `catch`.  All pages of a domain that ends with its capture are
written in `write`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from snapvm import retry
from snapvm.memory import framecopies, precopy, xenimage
from snapvm.memory.framestore import ORIGIN, Chunk, FrameStore
from snapvm.memory.guestreader import GuestReader
from snapvm.memory.imagehead import ImageHead
from snapvm.memory.normalise import FrameMap, Landmarks
from snapvm.memory.p2m import P2m, P2mRoots, require_published
from snapvm.memory.pagingmode import FRAME_BYTES, Marks
from snapvm.memory.standingpages import StandingPages
from snapvm.memory.xenformat import RecordType
from snapvm.memory.xenimage import ImageWriter
from snapvm.memory.xenrecord import TscInfo, VcpuState
from snapvm.memory.xenvcpu import canonicalise_context
from snapvm.memory.xenwriter import DomainTail
from snapvm.memoryroom import HostMemory, Room
from snapvm.model import Progress, Silent
from snapvm.refusals import BadImage
from snapvm.xenguest import Standing, WrittenImage

log = logging.getLogger(__name__)


class _NoPrecopy(Exception):
    """Pages cannot be written while the guest runs; the text says why."""


class Caught:
    """The guest as it stood still, and what writes its pages."""

    def __init__(
        self,
        standing: Standing,
        p2m: P2m,
        owned: Marks,
        begin_pages: Callable[[P2m, Marks, Landmarks], StandingPages],
    ) -> None:
        """``begin_pages`` is `GuestCapture._begin_pages`."""
        self.standing = standing
        self.p2m = p2m
        self.owned = owned
        self._begin_pages = begin_pages
        self._pages: StandingPages | None = None

    @property
    def pages(self) -> StandingPages:
        """What writes pages; it is made when it is first needed, since that takes a while."""
        if self._pages is None:
            landmarks = Landmarks(shared_info_mfn=self.standing.shared_info_mfn)
            self._pages = self._begin_pages(self.p2m, self.owned, landmarks)
        return self._pages


class GuestCapture:
    """One capture of one guest; the methods are its steps, see ``GuestImage``."""

    def __init__(
        self,
        *,
        path: Path,
        file: BinaryIO,
        writer: ImageWriter,
        head: ImageHead,
        reader: GuestReader,
        store: FrameStore,
        domain_ends: bool,
    ) -> None:
        """The caller closes what it hands over, except that `write` gives mappings back early."""
        self._path = path
        self._file = file
        self._writer = writer
        self._head = head
        self._reader = reader
        self._store = store
        self._domain_ends = domain_ends
        self._is_precopied = False
        """Whether ordinary pages were written while the guest ran."""
        self._spilled = 0
        """How many chunks were written in the pause, as memory did not hold what had changed."""
        self._total = 0
        """How many frames were captured."""
        self._changed = 0
        """How many of them while the guest stood still."""

    # --- while the guest runs ---

    def prepare(
        self, memory: HostMemory, shared_info: Callable[[], bytes], progress: Progress
    ) -> str:
        """Write ordinary pages, if possible; return how memory is captured, and why that way.

        Raises ``BadImage`` for a guest that need not stand still to be found impossible to capture,
        which takes half a minute: it may only just begin to boot.
        """
        self._reader.require_room()
        retry.booting(lambda: require_published(P2mRoots.of(shared_info()), origin=ORIGIN))
        try:
            apart = self._precopy(memory, shared_info, progress)
        except _NoPrecopy as why:
            if not self._domain_ends:
                log.warning("the guest will stand still until all its memory is written: %s", why)
            return f"one pass into the file while it stood still: {why}"
        self._is_precopied = True
        apart = apart and f", told apart by digests ({apart})"
        return f"precopy while it ran{apart}, then what had changed while it stood still"

    def _precopy(
        self, memory: HostMemory, shared_info: Callable[[], bytes], progress: Progress
    ) -> str:
        """Map all frames and write the ordinary ones; return why digests stand for them, if so.

        Raises ``_NoPrecopy`` when the guest cannot be written while it runs.
        """
        if self._domain_ends:
            raise _NoPrecopy("it was to end with that")
        begin = partial(self._write_early_head, memory, shared_info)
        try:
            p2m, room = precopy.when_there_is_room(begin, self._store.require_wanted, progress)
        except BadImage as error:
            why = f"its table of frames could not be read while it ran ({error.why})"
            raise _NoPrecopy(why) from error
        if not room.holds_digests:
            raise _NoPrecopy(str(room))
        pfns = self._reader.pfns(p2m)
        self._store.room_bytes = room.for_pages_bytes
        digests = "" if room.holds_all else str(room)
        if not digests and (why := framecopies.why_not(self._file.fileno())):
            digests = f"its file cannot be mapped: {why}"
        first = precopy.FirstPass(self._file, self._writer, keeps_pages=not digests)
        first.write_all(self._store.add(pfns, p2m.entries[pfns]), progress, room.needed_bytes)
        if digests:
            precopy.write_again(self._store, self._file, progress)
        return digests

    def _write_early_head(
        self, memory: HostMemory, shared_info: Callable[[], bytes]
    ) -> tuple[P2m, Room]:
        """Write the head, if there is room for the guest; return its p2m, and the room.

        Raises ``BadImage``, before it writes, for a p2m that the guest may be changing.
        """
        page = shared_info()
        if P2mRoots.of(page).generation & 1:
            raise BadImage(path=ORIGIN, offset_bytes=0, why="it is changing it")
        p2m = self._reader.p2m(page)
        room = memory.room(len(self._reader.pfns(p2m)) * FRAME_BYTES)
        if room.holds_digests:
            self._head.write_early(p2m, self._reader.frame_map(p2m))
        return p2m, room

    def rehearse(self, shared_info: bytes) -> None:
        """Do once what `catch` will do, so that memory is at hand and busy frames are known."""
        if self._is_precopied:
            with suppress(BadImage):  # the guest may be changing its p2m just now
                p2m = self._reader.p2m(shared_info)
                self._reader.owned(p2m)
                self._store.rehearse(p2m.entries)

    # --- while it stands still ---

    def catch(self, standing: Standing) -> Caught:
        """Keep what has changed, and all that can be read only now."""
        p2m = self._reader.p2m(standing.shared_info)
        caught = Caught(standing, p2m, self._reader.owned(p2m), self._begin_pages)
        if self._is_precopied:
            seen = partial(self._make_room, caught)
            self._changed = self._store.refresh(p2m.entries, seen, stands_still=True)
            self._total = self._store.count
        elif not self._domain_ends:
            self._write_all(caught, Silent())
        return caught

    def give_up(self) -> None:
        """From another thread: let work on frames end soon."""
        self._store.given_up.set()

    def _make_room(self, caught: Caught, chunks: Sequence[Chunk]) -> None:
        """Write the kept pages in the pause, when there is no memory for more.

        All chunks are written in order: a frame that moved is in two, and the later one counts.
        """
        if not self._store.is_full:
            return
        for chunk in chunks[self._spilled :]:
            self._store.require_wanted()
            caught.pages.write_kept(chunk)
            chunk.forget_kept()
        self._spilled = len(chunks)

    def _begin_pages(self, p2m: P2m, is_owned: Marks, landmarks: Landmarks) -> StandingPages:
        """Make the image's head true; return what writes pages behind it."""
        max_mfn = self._reader.max_mfn
        frame_map = FrameMap.of(p2m.entries, is_owned, max_mfn=max_mfn, landmarks=landmarks)
        self._head.write_final(p2m, frame_map)
        return StandingPages(self._file, self._writer, frame_map, ORIGIN)

    def _write_all(self, caught: Caught, progress: Progress) -> None:
        """Write every page from the mapped frames."""
        pages, p2m = caught.pages, caught.p2m
        pfns = self._reader.pfns(p2m)
        for chunk in self._store.add(pfns, p2m.entries[pfns], stands_still=True):
            if chunk.live is not None:
                pages.append(chunk.pfns, chunk.types, chunk.live)
            self._store.chunks.pop().give_back()
            self._total += len(chunk.pfns)
            progress.advance(self._total * FRAME_BYTES, len(pfns) * FRAME_BYTES)
        self._changed = self._total

    # --- when it runs again ---

    def write(self, caught: Caught, progress: Progress) -> WrittenImage:
        """Write what was caught, and bring all of the image to the disk."""
        restored = self._store.count_restored(caught.owned)
        self._reader.unmap_p2m()
        with self._store.giving_back():
            if self._is_precopied:
                self._write_kept(caught, progress)
            elif self._domain_ends:
                self._write_all(caught, progress)
            pages = caught.pages
            self._writer.finish(_tail(caught.standing, pages.frame_map))
            os.fsync(self._file.fileno())
        if self._spilled:  # not said in the pause: a terminal may be stopped
            log.warning("longer pause: more had changed than this host could spare memory for")
        pages.foreign.write()
        return WrittenImage(
            size_bytes=os.fstat(self._file.fileno()).st_size,
            foreign=pages.foreign.counts(),
            changed_frames=self._changed,
            frames=self._total,
            restored_frames=restored,
        )

    def _write_kept(self, caught: Caught, progress: Progress) -> None:
        """Write the kept pages; the memory of each chunk is free once it is written."""
        pages = caught.pages
        done = 0
        while self._store.chunks:
            chunk = self._store.chunks.pop(0)
            pages.write_kept(chunk)
            done += len(chunk.fresh_rows)
            progress.advance(done * FRAME_BYTES, self._changed * FRAME_BYTES)

    def redefine(self, definition: str) -> None:
        """Replace the configuration in a written image."""
        xenimage.redefine(self._path, definition)


def _tail(standing: Standing, frame_map: FrameMap) -> DomainTail:
    """Return what stands behind the pages of an image."""
    states = []
    for vcpu in standing.vcpus:
        basic = canonicalise_context(vcpu.vcpu_id, vcpu.basic, frame_map, origin=ORIGIN)
        parts = (
            (RecordType.X86_PV_VCPU_BASIC, basic),
            (RecordType.X86_PV_VCPU_EXTENDED, vcpu.extended),
            (RecordType.X86_PV_VCPU_XSAVE, vcpu.xsave),
            (RecordType.X86_PV_VCPU_MSRS, vcpu.msrs),
        )
        states += [
            VcpuState(part=part, vcpu_id=vcpu.vcpu_id, context=context) for part, context in parts
        ]
    tsc = standing.tsc
    return DomainTail(
        tsc=TscInfo(mode=tsc.mode, khz=tsc.khz, nsec=tsc.nsec, incarnation=tsc.incarnation),
        shared_info=standing.shared_info,
        vcpus=states,
    )
