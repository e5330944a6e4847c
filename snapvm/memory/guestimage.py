"""The engine that makes an xl image of a running 64-bit Xen PV guest.

Its steps, see ``GuestImage`` in `snapvm.hypervisor.base`: `prepare` writes the guest's ordinary
pages while it runs, and `rehearse` has ready what the next will need; `catch` keeps in memory, when
it stands still, what has changed since, with everything that only exists then (types, page tables,
the p2m, the machine-to-physical answers, the vCPUs); `write` puts that into the file when the guest
runs again: changed pages over the old ones, page tables, made canonical, behind them.  Nothing is
decided from what was read while it ran: the p2m is read again, and a frame that has moved is
written again.

The comparison maps the image, which is quick while the host's page cache holds it.  Where the
host has not that memory, a digest stands for each page, and what more has changed than memory holds
goes into the file in `catch`.  When even that is not possible, everything does, from the mapped
frames; and of a domain that ends with its capture, in `write`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from snapvm import durable
from snapvm.memory import foreignlog, precopy
from snapvm.memory.framestore import ORIGIN, Chunk, FrameStore, words
from snapvm.memory.normalise import FrameMap, Landmarks, Marks, owned
from snapvm.memory.p2m import P2m, P2mRoots, read_p2m
from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.standingpages import StandingPages
from snapvm.memory.xenformat import RecordType
from snapvm.memory.xenimage import ImageWriter, replace_config
from snapvm.memory.xenrecord import TscInfo, VcpuState
from snapvm.memory.xenvcpu import canonicalise_context
from snapvm.memory.xenwriter import LEAST_P2M_ROOM, DomainHead, DomainTail, p2m_bytes
from snapvm.memoryroom import HostMemory, Room
from snapvm.model import Progress, Silent
from snapvm.refusals import BadImage
from snapvm.xenguest import GuestFrames, HostFacts, Mapping, Standing, WrittenImage

log = logging.getLogger(__name__)

_P2M_ROOM: Final = 1 << 14
"""Frames by which the p2m may grow while its guest is copied, each for 2 MiB of it: 32 GiB."""


class PvGuestImage:
    """Makes one image; fulfils ``GuestImage``."""

    def __init__(self, memory: HostMemory, *, domain_ends: bool = False) -> None:
        """``domain_ends`` says that the guest stands still until `write` is done."""
        self._memory = memory
        self._domain_ends = domain_ends
        self._stack = ExitStack()
        self._stack.callback(memory.close)
        self._head: DomainHead | None = None
        """What the file says of the p2m among other things, once it is written."""
        self._p2m_stack = self._stack.enter_context(ExitStack())
        self._p2m_mappings: dict[bytes, Mapping] = {}
        self._standing_writer: StandingPages | None = None
        self._why_digests = ""
        self._spilled = 0
        """How many chunks have been written already while it stood still."""
        self._changed = 0
        self._total = 0

    # --- the steps ---

    def prepare(
        self,
        path: Path,
        definition: str,
        host: HostFacts,
        frames: GuestFrames,
        shared_info: Callable[[], bytes],
        progress: Progress,
    ) -> str:
        """See ``GuestImage.prepare``."""
        self._path, self._host, self._frames = path, host, frames
        self._file: BinaryIO = self._stack.enter_context(
            os.fdopen(durable.create(path), "w+b", buffering=0)
        )
        self._writer = ImageWriter(self._file, definition, is_sparse=True)
        self._m2p = words(self._stack.enter_context(frames.machine_to_physical()))
        self._stack.callback(self._forget_m2p)
        self._store = FrameStore(frames)
        self._stack.callback(self._store.give_back)
        why_not = self._precopy(shared_info, progress)
        self._is_held = not why_not
        if why_not:
            if not self._domain_ends:
                log.warning("it is going to stand still until all of it is written: %s", why_not)
            return f"one pass into the file while it stood still: {why_not}"
        digests = f", told apart by digests ({self._why_digests})" if self._why_digests else ""
        return f"precopy while it ran{digests}, then what had changed while it stood still"

    def rehearse(self, shared_info: bytes) -> None:
        """See ``GuestImage.rehearse``."""
        if self._is_held:
            with suppress(BadImage):  # the guest may be in the midst of changing its p2m
                p2m = self._read_p2m(shared_info)
                self._is_owned(p2m)
                self._store.rehearse(p2m.entries)

    def catch(self, standing: Standing) -> None:
        """See ``GuestImage.catch``."""
        self._p2m = self._read_p2m(standing.shared_info)
        self._owned = self._is_owned(self._p2m)
        self._standing = standing
        if self._is_held:
            entries = self._p2m.entries
            self._changed = self._store.refresh(entries, self._make_room, stands_still=True)
            self._total = self._store.count
            return
        if not self._domain_ends:
            self._write_standing(Silent())

    def give_up(self) -> None:
        """See ``GuestImage.give_up``."""
        self._store.given_up.set()

    def write(self, progress: Progress) -> WrittenImage:
        """See ``GuestImage.write``."""
        restored = self._store.count_restored(self._owned)
        self._p2m_mappings.clear()
        self._p2m_stack.close()
        with self._store.giving_back():
            if self._is_held:
                self._write_kept(progress)
            elif self._domain_ends:
                self._write_standing(progress)
            self._writer.finish(self._tail())
            os.fsync(self._file.fileno())
        if self._spilled:  # not said before: a terminal may be stopped
            log.warning("it stood still for longer: more had changed than this host could spare")
        return WrittenImage(
            size_bytes=os.fstat(self._file.fileno()).st_size,
            foreign=foreignlog.count(self._standing_pages().foreign),
            changed_frames=self._changed,
            frames=self._total,
            restored_frames=restored,
        )

    def redefine(self, definition: str) -> None:
        """See ``GuestImage.redefine``."""
        if not replace_config(self._path, definition):
            why = "there is no room in it for the configuration as it is now"
            raise BadImage(path=str(self._path), offset_bytes=0, why=why)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """See ``GuestImage.close``."""
        self._stack.close()

    # --- reading the guest ---

    def _read_p2m(self, shared_info: bytes) -> P2m:
        roots = P2mRoots.of(shared_info)
        return read_p2m(roots, self._p2m_frames, max_mfn=self._frames.max_mfn, origin=ORIGIN)

    def _p2m_frames(self, mfns: Words) -> Words:
        """Give frames of the p2m; they stay mapped, for it will be in them again in the window."""
        asked = np.ascontiguousarray(mfns)
        mapping = self._p2m_mappings.get(asked.tobytes())
        if mapping is None:
            mapping = self._frames.map(asked.data)
            self._p2m_stack.callback(mapping.close)
            if mapping.missing:
                mfn = int(mfns[mapping.missing[0]])
                why = f"machine frame {mfn:#x} of its p2m cannot be mapped"
                raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
            self._p2m_mappings[asked.tobytes()] = mapping
        return words(mapping.view).reshape(-1, FRAME_BYTES // 8)

    def _is_owned(self, p2m: P2m) -> Marks:
        """Ask Xen now which of the machine frames that the p2m has are the guest's."""
        return owned(p2m.entries, self._m2p, max_mfn=self._frames.max_mfn)

    def _standing_map(self) -> FrameMap:
        return FrameMap.of(
            self._p2m.entries,
            self._owned,
            max_mfn=self._frames.max_mfn,
            landmarks=Landmarks(shared_info_mfn=self._standing.shared_info_mfn),
        )

    def _pfns(self, p2m: P2m) -> Words:
        """Return the PFNs of the frames that the guest says it has."""
        return np.flatnonzero(p2m.entries < np.uint64(self._frames.max_mfn)).view(np.uint64)

    def _forget_m2p(self) -> None:
        """Let go of the mapped table before it is unmapped."""
        del self._m2p

    # --- while it runs ---

    def _precopy(self, shared_info: Callable[[], bytes], progress: Progress) -> str:
        """Hold all frames, ordinary pages written; return why it is not possible, or nothing."""
        if self._domain_ends:
            return "it was to end with that"
        try:
            p2m, room = precopy.begun(
                lambda: self._begin(shared_info()), self._store.require_wanted, progress
            )
        except BadImage as error:
            return f"its table of frames could not be read while it ran ({error.why})"
        if not room.holds_digests:
            return str(room)
        pfns = self._pfns(p2m)
        self._store.room_bytes = room.for_pages_bytes
        first = precopy.FirstPass(self._file, self._writer, keeps_pages=room.holds_all)
        first.write_all(self._store.add(pfns, p2m.entries[pfns]), progress, room.needed_bytes)
        if not room.holds_all:
            self._why_digests = str(room)
            precopy.write_again(self._store, self._file, progress)
        return ""

    def _begin(self, shared_info: bytes) -> tuple[P2m, Room]:
        """Write the head, if there is room for the guest; ``BadImage`` leaves the file as it is."""
        if P2mRoots.of(shared_info).generation & 1:
            raise BadImage(path=ORIGIN, offset_bytes=0, why="it is changing it")
        p2m = self._read_p2m(shared_info)
        room = self._memory.room(len(self._pfns(p2m)) * FRAME_BYTES)
        if room.holds_digests:
            max_mfn = self._frames.max_mfn
            frame_map = FrameMap.build(p2m.entries, self._m2p, max_mfn=max_mfn)
            self._write_head(p2m, frame_map, room=_P2M_ROOM)
        return p2m, room

    # --- while it stands still ---

    def _make_room(self, chunks: Sequence[Chunk]) -> None:
        """Write what is kept while it stands still, when there is no memory for more.

        All of it, in order: a frame that moved is in two chunks, and the later one counts.
        """
        if not self._store.is_full:
            return
        for chunk in chunks[self._spilled :]:
            self._store.require_wanted()
            self._standing_pages().write_kept(chunk)
            chunk.forget_kept()
        self._spilled = len(chunks)

    def _standing_pages(self) -> StandingPages:
        """Have what puts pages of the guest that stands still into the file, behind a true head."""
        if self._standing_writer is None:
            self._map = self._standing_map()
            if self._head is None:
                self._write_head(self._p2m, self._map, room=0)
            else:
                self._correct_head()
            self._standing_writer = StandingPages(self._file, self._writer, self._map, ORIGIN)
        return self._standing_writer

    def _write_standing(self, progress: Progress) -> None:
        """Write everything from the mapped frames."""
        standing = self._standing_pages()
        pfns = self._pfns(self._p2m)
        for chunk in self._store.add(pfns, self._p2m.entries[pfns], stands_still=True):
            if chunk.live is not None:
                standing.append(chunk.pfns, chunk.types, chunk.live)
            self._store.chunks.pop().give_back()
            self._total += len(chunk.pfns)
            progress.advance(self._total * FRAME_BYTES, len(pfns) * FRAME_BYTES)
        self._changed = self._total

    # --- when it runs again ---

    def _write_head(self, p2m: P2m, frame_map: FrameMap, *, room: int) -> None:
        head = DomainHead(
            xen_major=self._host.xen_major,
            xen_minor=self._host.xen_minor,
            cpuid_policy=self._host.cpuid_policy,
            msr_policy=self._host.msr_policy,
            end_pfn=p2m.end_pfn,
            p2m_pfns=_leaf_pfns(p2m, frame_map),
            p2m_room=room,
        )
        self._writer.begin(head)
        self._head = head
        self._head_end = self._file.tell()

    def _correct_head(self) -> None:
        """Say of the p2m what is true now; it may have moved, and grown with the guest."""
        pfns = _leaf_pfns(self._p2m, self._map)
        head, now = self._head, self._p2m
        room = -1 if head is None else head.p2m_room + len(head.p2m_pfns) - len(pfns)
        if head is None or room < LEAST_P2M_ROOM or head.end_pfn > now.end_pfn:
            why = "its table of frames changed its size while it was captured; take again"
            raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
        data = p2m_bytes(now.end_pfn, pfns, room=room)
        durable.rewrite(self._file.fileno(), memoryview(data), self._head_end - len(data))
        self._writer.end_pfn = now.end_pfn

    def _write_kept(self, progress: Progress) -> None:
        """Write what was kept; its memory is free when it is written."""
        standing = self._standing_pages()
        done = 0
        while self._store.chunks:
            chunk = self._store.chunks.pop(0)
            standing.write_kept(chunk)
            done += len(chunk.fresh_rows)
            progress.advance(done * FRAME_BYTES, self._changed * FRAME_BYTES)

    def _tail(self) -> DomainTail:
        standing = self._standing
        states = []
        for vcpu in standing.vcpus:
            basic = canonicalise_context(vcpu.vcpu_id, vcpu.basic, self._map, origin=ORIGIN)
            parts = (
                (RecordType.X86_PV_VCPU_BASIC, basic),
                (RecordType.X86_PV_VCPU_EXTENDED, vcpu.extended),
                (RecordType.X86_PV_VCPU_XSAVE, vcpu.xsave),
                (RecordType.X86_PV_VCPU_MSRS, vcpu.msrs),
            )
            states += [
                VcpuState(part=part, vcpu_id=vcpu.vcpu_id, context=context)
                for part, context in parts
            ]
        tsc = standing.tsc
        return DomainTail(
            tsc=TscInfo(mode=tsc.mode, khz=tsc.khz, nsec=tsc.nsec, incarnation=tsc.incarnation),
            shared_info=standing.shared_info,
            vcpus=states,
        )


def _leaf_pfns(p2m: P2m, frame_map: FrameMap) -> Words:
    """Return where the p2m itself is; raise ``BadImage`` when that is not the guest's own."""
    pfns, is_owned = frame_map.pfns_of(p2m.leaf_mfns)
    if not is_owned.all():
        mfn = int(p2m.leaf_mfns[np.argmin(is_owned)])
        why = f"its p2m lies in machine frame {mfn:#x}, which it does not own"
        raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
    return pfns
