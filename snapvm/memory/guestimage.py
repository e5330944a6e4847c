"""The engine that makes an xl image of a running 64-bit Xen PV guest.

Three steps, see ``GuestImage`` in `snapvm.hypervisor.base`: `prepare` copies the guest's frames
while it runs, `catch` copies what has changed since when it stands still, with everything that only
exists then (types, the p2m, the machine-to-physical answers, the vCPUs), and `write` makes page
tables canonical and writes the file when the guest runs again.  Nothing is decided from what was
read while it ran: the p2m is read again, and a frame that has moved is copied again.

Where the host has not the memory for a copy of the guest, everything happens in `catch`, from the
mapped frames straight into the file.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from snapvm import durable
from snapvm.errors import BadImage
from snapvm.memory.framestore import CHUNK_FRAMES, FrameStore, Pages, map_chunk, types_of, words
from snapvm.memory.normalise import ForeignEntries, ForeignKind, FrameMap, Landmarks, Normaliser
from snapvm.memory.p2m import P2m, P2mRoots, read_p2m
from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.xenformat import (
    PAGES_PER_BATCH,
    TYPE_HAS_DATA,
    TYPE_LEVEL,
    PageTypes,
    RecordType,
)
from snapvm.memory.xenimage import ImageWriter
from snapvm.memory.xenrecord import TscInfo, VcpuState
from snapvm.memory.xenvcpu import canonicalise_context
from snapvm.memory.xenwriter import DomainHead, DomainTail
from snapvm.model import Progress
from snapvm.xenguest import GuestFrames, HostFacts, ImageFacts, Standing

log = logging.getLogger(__name__)

ORIGIN: Final = "the guest's memory"
SPARE_BYTES: Final = 192 << 20
"""What the host keeps for itself when we copy a guest into its memory."""
_LOGGED: Final = 32
_FOREIGN_NAMES: Final = {
    ForeignKind.UNKNOWN: "unknown",
    ForeignKind.OWN_GRANT: "own grant",
    ForeignKind.OTHER_GRANT: "other domain's grant",
    ForeignKind.SHARED_INFO: "shared info",
    ForeignKind.MMIO: "device memory",
}


def available_bytes() -> int:
    """Return how much memory the host can give without swapping (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


class PvGuestImage:
    """Makes one image; fulfils ``GuestImage``."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        """Allow so much memory for copies; what the host can spare when it is left out."""
        self._budget_bytes = budget_bytes
        self._stack = ExitStack()
        self._foreign: list[ForeignEntries] = []
        self._changed = 0
        self._written = 0

    # --- the three steps ---

    def prepare(
        self,
        path: Path,
        definition: str,
        host: HostFacts,
        frames: GuestFrames,
        shared_info: bytes,
        progress: Progress,
    ) -> str:
        """See ``GuestImage.prepare``."""
        self._host, self._frames = host, frames
        self._file: BinaryIO = self._stack.enter_context(
            os.fdopen(durable.create(path), "wb", buffering=0)
        )
        self._writer = ImageWriter(self._file, definition, is_sparse=True)
        self._m2p = words(self._stack.enter_context(frames.machine_to_physical()))
        self._stack.callback(self._forget_m2p)
        self._store = FrameStore(frames)
        self._stack.callback(self._store.give_back)
        why_not = self._precopy(shared_info, progress)
        self._is_buffered = not why_not
        if why_not:
            return f"one pass into the file while it stands still: {why_not}"
        return "precopy into the host's memory, then what had changed while it stood still"

    def catch(self, standing: Standing) -> None:
        """See ``GuestImage.catch``."""
        p2m = self._read_p2m(standing.shared_info)
        self._map = FrameMap.build(
            p2m.entries,
            self._m2p,
            max_mfn=self._frames.max_mfn,
            landmarks=Landmarks(shared_info_mfn=standing.shared_info_mfn),
        )
        self._standing, self._p2m = standing, p2m
        if self._is_buffered:
            self._changed = self._store.refresh(p2m.entries)
            return
        self._begin()
        self._write_mapped(p2m)

    def write(self, progress: Progress) -> ImageFacts:
        """See ``GuestImage.write``."""
        if self._is_buffered:
            self._store.give_back()
            self._begin()
            self._write_copies(progress)
        self._writer.finish(self._tail())
        os.fsync(self._file.fileno())
        return ImageFacts(
            size_bytes=os.fstat(self._file.fileno()).st_size,
            foreign=self._foreign_counts(),
            changed_frames=self._changed,
            frames=self._written,
        )

    def close(self) -> None:
        """See ``GuestImage.close``."""
        self._stack.close()

    # --- copying ---

    def _precopy(self, shared_info: bytes, progress: Progress) -> str:
        """Copy all frames; return why that is not possible, or nothing."""
        if P2mRoots.of(shared_info).generation & 1:
            return "the guest is changing its table of frames"
        try:
            p2m = self._read_p2m(shared_info)
        except BadImage as error:
            return f"its table of frames cannot be read while it runs ({error.why})"
        pfns = self._owned(p2m)
        needed_bytes = len(pfns) * FRAME_BYTES
        budget_bytes = self._budget_bytes
        if budget_bytes is None:
            budget_bytes = available_bytes() - SPARE_BYTES
        if needed_bytes > budget_bytes:
            return (
                f"a copy of its {needed_bytes >> 20} MiB does not fit the "
                f"{max(budget_bytes, 0) >> 20} MiB this host can spare"
            )
        for done in self._store.add(pfns, p2m.entries[pfns]):
            progress.advance(done * FRAME_BYTES, needed_bytes)
        return ""

    def _read_p2m(self, shared_info: bytes) -> P2m:
        def fetch(mfns: Words) -> Words:
            mapping = self._frames.map(np.ascontiguousarray(mfns).data)
            try:
                if mapping.missing:
                    mfn = int(mfns[mapping.missing[0]])
                    why = f"machine frame {mfn:#x} of its p2m cannot be mapped"
                    raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
                return words(mapping.view).reshape(-1, FRAME_BYTES // 8).copy()
            finally:
                mapping.close()

        roots = P2mRoots.of(shared_info)
        return read_p2m(roots, fetch, max_mfn=self._frames.max_mfn, origin=ORIGIN)

    def _owned(self, p2m: P2m) -> Words:
        return np.flatnonzero(p2m.entries < np.uint64(self._frames.max_mfn)).astype(np.uint64)

    def _forget_m2p(self) -> None:
        """Let go of the mapped table before it is unmapped."""
        del self._m2p

    # --- writing ---

    def _begin(self) -> None:
        pfns, is_owned = self._map.pfns_of(self._p2m.leaf_mfns)
        if not is_owned.all():
            mfn = int(self._p2m.leaf_mfns[np.argmin(is_owned)])
            why = f"its p2m lies in machine frame {mfn:#x}, which it does not own"
            raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
        self._writer.begin(
            DomainHead(
                xen_major=self._host.xen_major,
                xen_minor=self._host.xen_minor,
                cpuid_policy=self._host.cpuid_policy,
                msr_policy=self._host.msr_policy,
                end_pfn=self._p2m.end_pfn,
                p2m_pfns=pfns,
            )
        )
        self._normaliser = Normaliser(self._map, ORIGIN)

    def _write_mapped(self, p2m: P2m) -> None:
        pfns = self._owned(p2m)
        for start in range(0, len(pfns), CHUNK_FRAMES):
            part = pfns[start : start + CHUNK_FRAMES]
            chunk = map_chunk(self._frames, part, p2m.entries[part])
            if chunk is not None:
                chunk.give_back()
                self._emit(chunk.pfns, types_of(self._frames, chunk.mfns), chunk.copies)

    def _write_copies(self, progress: Progress) -> None:
        total_bytes = self._store.count * FRAME_BYTES
        done_bytes = 0
        while self._store.chunks:
            chunk = self._store.chunks.pop(0)  # its memory is free when it is written
            self._emit(chunk.pfns, chunk.types, chunk.copies)
            done_bytes += len(chunk.pfns) * FRAME_BYTES
            progress.advance(done_bytes, total_bytes)

    def _emit(self, pfns: Words, types: PageTypes, pages: Pages) -> None:
        """Write those frames that are the domain's, tables made canonical."""
        for start in range(0, len(pfns), PAGES_PER_BATCH):
            part = slice(start, start + PAGES_PER_BATCH)
            is_owned = TYPE_HAS_DATA[types[part]]
            some_pfns, some_types, some = pfns[part], types[part], pages[part]
            if not is_owned.all():
                some_pfns, some_types, some = (
                    some_pfns[is_owned],
                    some_types[is_owned],
                    some[is_owned],
                )
            levels = TYPE_LEVEL[some_types]
            rows = np.flatnonzero(levels)
            if len(rows):
                tables = some[rows].view(np.uint64)
                found = self._normaliser.canonicalise(tables, levels[rows], some_pfns[rows])
                if len(found):
                    self._foreign.append(found)
                some[rows] = tables.view(np.uint8)
            if len(some_pfns):
                self._writer.pages(some_pfns, some_types, some)
                self._written += len(some_pfns)

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

    def _foreign_counts(self) -> dict[str, int]:
        """Count and log what was zeroed."""
        counts: dict[str, int] = {}
        for entries in self._foreign:
            for entry in entries:
                kind = _FOREIGN_NAMES[ForeignKind(int(entry["kind"]))]
                counts[kind] = counts.get(kind, 0) + 1
                if sum(counts.values()) <= _LOGGED:
                    log.info(
                        "zeroed entry %d of table %#x: machine frame %#x, flags %#x, %s",
                        entry["index"],
                        entry["table_pfn"],
                        entry["mfn"],
                        entry["flags"],
                        kind,
                    )
        return counts
