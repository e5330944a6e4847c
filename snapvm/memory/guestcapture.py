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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from snapvm import durable, retry
from snapvm.memory import framecopies, precopy, xenimage
from snapvm.memory.framestore import ORIGIN, Chunk, FrameStore
from snapvm.memory.guestreader import GuestReader
from snapvm.memory.imagehead import ImageHead
from snapvm.memory.normalise import FrameMap
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
from snapvm.xenguest import GuestFrames, HostFacts, Standing, WrittenImage

log = logging.getLogger(__name__)


class _NoPrecopy(Exception):
    """Pages cannot be written while the guest runs; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caught:
    """The guest as it stood still."""

    standing: Standing
    p2m: P2m
    owned: Marks


class GuestCapture:
    """One capture of one guest; fulfils ``GuestImage``, whose steps it has in their order."""

    def __init__(
        self,
        path: Path,
        definition: str,
        host: HostFacts,
        frames: GuestFrames,
        memory: HostMemory,
        *,
        domain_ends: bool = False,
    ) -> None:
        """Make the file; ``domain_ends`` says that the guest stands still until `write` is done."""
        self._path = path
        self._memory = memory
        self._domain_ends = domain_ends
        with ExitStack() as stack:
            stack.callback(memory.close)
            file = os.fdopen(durable.create(path), "w+b", buffering=0)
            self._file = stack.enter_context(file)
            self._writer = ImageWriter(file, definition, is_sparse=True)
            self._head = ImageHead(file, self._writer, host)
            self._reader = GuestReader(frames)
            stack.callback(self._reader.close)
            self._store = FrameStore(frames)
            stack.callback(self._store.give_back)
            self._stack = stack.pop_all()
        self._caught: _Caught | None = None
        self._pages: StandingPages | None = None
        self._is_precopied = False
        """Whether ordinary pages were written while the guest ran."""
        self._spilled = 0
        """How many chunks were written in the pause, as memory did not hold what had changed."""
        self._total = 0
        """How many frames were captured."""
        self._changed = 0
        """How many of them while the guest stood still."""

    def close(self) -> None:
        """See ``GuestImage.close``."""
        self._stack.close()

    # --- while the guest runs ---

    def prepare(self, shared_info: Callable[[], bytes], progress: Progress) -> str:
        """See ``GuestImage.prepare``: write ordinary pages, if that is possible.

        Raises ``BadImage`` for a guest that need not stand still to be found impossible to capture,
        which takes half a minute: it may only just begin to boot.
        """
        self._reader.require_room()
        retry.booting(lambda: require_published(P2mRoots.of(shared_info()), origin=ORIGIN))
        try:
            apart = self._precopy(shared_info, progress)
        except _NoPrecopy as why:
            if not self._domain_ends:
                log.warning("the guest will stand still until all its memory is written: %s", why)
            return f"one pass into the file while it stood still: {why}"
        self._is_precopied = True
        apart = apart and f", told apart by digests ({apart})"
        return f"precopy while it ran{apart}, then what had changed while it stood still"

    def _precopy(self, shared_info: Callable[[], bytes], progress: Progress) -> str:
        """Map all frames and write the ordinary ones; return why digests stand for them, if so.

        Raises ``_NoPrecopy`` when the guest cannot be written while it runs.
        """
        if self._domain_ends:
            raise _NoPrecopy("it was to end with that")
        begin = partial(self._write_early_head, shared_info)
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

    def _write_early_head(self, shared_info: Callable[[], bytes]) -> tuple[P2m, Room]:
        """Write the head, if there is room for the guest; return its p2m, and the room.

        Raises ``BadImage``, before it writes, for a p2m that the guest may be changing.
        """
        page = shared_info()
        if P2mRoots.of(page).generation & 1:
            raise BadImage(path=ORIGIN, offset_bytes=0, why="it is changing it")
        p2m = self._reader.p2m(page)
        room = self._memory.room(len(self._reader.pfns(p2m)) * FRAME_BYTES)
        if room.holds_digests:
            self._head.write_early(p2m, self._reader.frame_map(p2m))
        return p2m, room

    def rehearse(self, shared_info: bytes) -> None:
        """See ``GuestImage.rehearse``."""
        if self._is_precopied:
            with suppress(BadImage):  # the guest may be changing its p2m just now
                p2m = self._reader.p2m(shared_info)
                self._reader.owned(p2m)
                self._store.rehearse(p2m.entries)

    # --- while it stands still ---

    def catch(self, standing: Standing) -> None:
        """See ``GuestImage.catch``."""
        p2m = self._reader.p2m(standing.shared_info)
        caught = _Caught(standing=standing, p2m=p2m, owned=self._reader.owned(p2m))
        if self._is_precopied:
            seen = partial(self._make_room, caught)
            self._changed = self._store.refresh(p2m.entries, seen, stands_still=True)
            self._total = self._store.count
        elif not self._domain_ends:
            self._write_all(caught, Silent())
        self._caught = caught

    def give_up(self) -> None:
        """See ``GuestImage.give_up``."""
        self._store.given_up.set()

    def _make_room(self, caught: _Caught, chunks: Sequence[Chunk]) -> None:
        """Write the kept pages in the pause, when there is no memory for more.

        All chunks are written in order: a frame that moved is in two, and the later one counts.
        """
        if not self._store.is_full:
            return
        for chunk in chunks[self._spilled :]:
            self._store.require_wanted()
            self._standing_pages(caught).write_kept(chunk)
            chunk.forget_kept()
        self._spilled = len(chunks)

    def _standing_pages(self, caught: _Caught) -> StandingPages:
        """Return what writes pages, behind a head that is true now.

        It is made when it is first needed, since that takes a while.
        """
        if self._pages is None:
            frame_map = FrameMap.of(
                caught.p2m.entries,
                caught.owned,
                max_mfn=self._reader.max_mfn,
                shared_info_mfn=caught.standing.shared_info_mfn,
            )
            self._head.write_final(caught.p2m, frame_map)
            self._pages = StandingPages(self._file, self._writer, frame_map, ORIGIN)
        return self._pages

    def _write_all(self, caught: _Caught, progress: Progress) -> None:
        """Write every page from the mapped frames."""
        pages, p2m = self._standing_pages(caught), caught.p2m
        pfns = self._reader.pfns(p2m)
        for chunk in self._store.add(pfns, p2m.entries[pfns], stands_still=True):
            if chunk.live is not None:
                pages.append(chunk.pfns, chunk.types, chunk.live)
            self._store.chunks.pop().give_back()
            self._total += len(chunk.pfns)
            progress.advance(self._total * FRAME_BYTES, len(pfns) * FRAME_BYTES)
        self._changed = self._total

    # --- when it runs again ---

    def write(self, progress: Progress) -> WrittenImage:
        """See ``GuestImage.write``."""
        caught = self._caught
        if caught is None:
            raise RuntimeError("an image is written of a guest that was not caught")
        restored = self._store.count_restored(caught.owned)
        self._reader.unmap_p2m()
        with self._store.giving_back():
            if self._is_precopied:
                self._write_kept(caught, progress)
            elif self._domain_ends:
                self._write_all(caught, progress)
            pages = self._standing_pages(caught)
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

    def _write_kept(self, caught: _Caught, progress: Progress) -> None:
        """Write the kept pages; the memory of each chunk is free once it is written."""
        pages = self._standing_pages(caught)
        done = 0
        while self._store.chunks:
            chunk = self._store.chunks.pop(0)
            pages.write_kept(chunk)
            done += len(chunk.fresh_rows)
            progress.advance(done * FRAME_BYTES, self._changed * FRAME_BYTES)

    def redefine(self, definition: str) -> None:
        """See ``GuestImage.redefine``."""
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
