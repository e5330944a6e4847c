"""Write libxenguest's migration stream, version 3, for an x86 PV domain.

A `StreamWriter` has three steps, in this order: `begin` with what does not change while the guest
runs, `pages` any number of times, and `finish` with what is known only at the end.  A page may be
written again: a restore takes its last contents and its last type (tools/libs/guest/
xg_sr_restore.c).  So pages can be written while the guest runs, and changed ones again afterwards.

The caller has to canonicalise tables and vCPU contexts before.  Arguments that cannot be written
are a `ValueError`, a bug of the caller.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.xenformat import (
    DOMAIN_HEADER,
    IMAGE_HEADER,
    IMAGE_ID,
    IMAGE_MARKER,
    P2M_RANGE,
    PAGE_COUNT,
    PAGES_PER_BATCH,
    PV_INFO,
    RECORD_ALIGN_BYTES,
    RECORD_HEADER,
    TSC_INFO,
    TYPE_HAS_DATA,
    TYPE_IS_LEGAL,
    VCPU_HEADER,
    VCPU_RECORDS,
    DomainType,
    PageType,
    PageTypes,
    RecordType,
    frames_of_p2m,
    page_entries,
)
from snapvm.memory.xenrecord import TscInfo, VcpuState

STREAM_VERSION: Final = 3
_ENTRY_BYTES: Final = 8
_PAGES_HEAD_BYTES: Final = RECORD_HEADER.size + PAGE_COUNT.size
LEAST_GAP_BYTES: Final = _PAGES_HEAD_BYTES + _ENTRY_BYTES
_MOST_GAP_BYTES: Final = _PAGES_HEAD_BYTES + PAGES_PER_BATCH * _ENTRY_BYTES
LEAST_P2M_ROOM: Final = LEAST_GAP_BYTES // _ENTRY_BYTES
"""The room behind the p2m's frames is either none or at least this many entries."""
_PT_LEVELS: Final = {8: 4, 4: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainHead:
    """What is written before the first page; it does not change while the domain runs."""

    xen_major: int
    xen_minor: int
    width_bytes: int = 8
    cpuid_policy: bytes = b""
    msr_policy: bytes = b""
    end_pfn: int
    """The last PFN of the p2m; shared_info.arch.max_pfn is one more, because it is a count."""
    p2m_pfns: Words
    """The PFNs of the frames that hold the p2m, `frames_of_p2m` of them."""
    p2m_room: int = 0
    """For how many more p2m frames there is to be room; see `p2m_bytes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainTail:
    """What is written after the last page; it is read while the domain stands still."""

    tsc: TscInfo
    shared_info: bytes
    vcpus: Sequence[VcpuState]
    """The parts of all online vCPUs, in any order; empty parts are not written."""


def head_bytes(count: int) -> int:
    """Return how many bytes a record of ``count`` pages has before its first page."""
    return _PAGES_HEAD_BYTES + count * _ENTRY_BYTES


def filler(gap_bytes: int, pfn: int) -> bytes:
    """Return ``gap_bytes`` of records without effect, which say that ``pfn`` has no page.

    A later record must have the page of ``pfn``.  The gap is a multiple of 8, and at least
    `LEAST_GAP_BYTES`.
    """
    entry = page_entries(np.array([pfn], np.uint64), np.array([PageType.XTAB], np.uint8))
    records = []
    while gap_bytes:
        size_bytes = min(gap_bytes, _MOST_GAP_BYTES)
        if 0 < gap_bytes - size_bytes < LEAST_GAP_BYTES:
            size_bytes -= LEAST_GAP_BYTES
        count = (size_bytes - _PAGES_HEAD_BYTES) // _ENTRY_BYTES
        length_bytes = PAGE_COUNT.size + count * _ENTRY_BYTES
        head = RECORD_HEADER.pack(RecordType.PAGE_DATA, length_bytes) + PAGE_COUNT.pack(count, 0)
        records.append(head + entry.astype("<u8").tobytes() * count)
        gap_bytes -= size_bytes
    return b"".join(records)


def p2m_bytes(end_pfn: int, pfns: Words, *, room: int) -> bytes:
    """Return the record with the p2m's frames, and behind it room for ``room`` more frames.

    When the p2m has grown, the record is overwritten by one with more frames and less room.
    """
    body = P2M_RANGE.pack(0, end_pfn) + pfns.astype("<u8").tobytes()
    record = RECORD_HEADER.pack(RecordType.X86_PV_P2M_FRAMES, len(body)) + body
    return record + filler(room * _ENTRY_BYTES, int(pfns[0]))


class ByteSink:
    """Writes whole buffers to a new file, with holes for zero pages where that is possible."""

    def __init__(self, stream: BinaryIO, *, is_sparse: bool = False) -> None:
        """Write from the position of ``stream`` on; ``is_sparse`` needs a file that ends there."""
        self._stream = stream
        self._is_sparse = is_sparse

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view.nbytes:
            view = view[self._stream.write(view) :]

    def write_pages(self, pages: npt.NDArray[np.uint8]) -> None:
        """Write rows of 4096 bytes."""
        if not self._is_sparse:
            self.write(np.ascontiguousarray(pages).reshape(-1).data)
            return
        is_empty = np.asarray(~pages.view(np.uint64).any(axis=1))
        breaks = np.flatnonzero(is_empty[1:] != is_empty[:-1]) + 1
        for run in np.split(np.arange(len(pages)), breaks):
            if len(run) and is_empty[run[0]]:
                self._stream.seek(len(run) * FRAME_BYTES, os.SEEK_CUR)
            elif len(run):
                self.write(pages[run[0] : run[-1] + 1].reshape(-1).data)


class StreamWriter:
    """Writes one stream to a sink: `begin`, `pages`..., `finish`."""

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self.end_pfn = -1
        """The last PFN of the p2m; whoever corrects the head sets it too."""

    def begin(self, head: DomainHead) -> None:
        """Write the headers and the records before the first page."""
        if len(head.p2m_pfns) != frames_of_p2m(head.end_pfn, head.width_bytes):
            raise ValueError(f"{len(head.p2m_pfns)} p2m frames for end_pfn {head.end_pfn:#x}")
        self.end_pfn = head.end_pfn
        self._sink.write(IMAGE_HEADER.pack(IMAGE_MARKER, IMAGE_ID, STREAM_VERSION, 0, 0, 0))
        self._sink.write(DOMAIN_HEADER.pack(DomainType.PV, 12, 0, head.xen_major, head.xen_minor))
        info = PV_INFO.pack(head.width_bytes, _PT_LEVELS[head.width_bytes], 0, 0)
        self._record(RecordType.X86_PV_INFO, info)
        # By the specification ("Layout") records without content are left out.
        if head.cpuid_policy:
            self._record(RecordType.X86_CPUID_POLICY, head.cpuid_policy)
        if head.msr_policy:
            self._record(RecordType.X86_MSR_POLICY, head.msr_policy)
        self._record(RecordType.STATIC_DATA_END)
        self._sink.write(p2m_bytes(head.end_pfn, head.p2m_pfns, room=head.p2m_room))

    def pages(self, pfns: Words, types: PageTypes, data: npt.NDArray[np.uint8]) -> None:
        """Write pages, in records of `PAGES_PER_BATCH`.

        ``data`` has a row of 4096 bytes for each page whose type has data, in the same order.
        """
        has_data = TYPE_HAS_DATA[types]
        if len(pfns) != len(types) or len(data) != int(has_data.sum()):
            raise ValueError(f"{len(pfns)} pfns, {len(types)} types, {len(data)} pages of data")
        if len(pfns) and (int(pfns.max()) > self.end_pfn or not TYPE_IS_LEGAL[types].all()):
            raise ValueError("a page beyond the p2m, or of a type that does not exist")
        row = 0
        for first in range(0, len(pfns), PAGES_PER_BATCH):
            part = slice(first, first + PAGES_PER_BATCH)
            rows = int(has_data[part].sum())
            self._batch(pfns[part], types[part], data[row : row + rows])
            row += rows

    def skip(self, gap_bytes: int, pfn: int) -> None:
        """Write ``gap_bytes`` without effect; see `filler`."""
        self._sink.write(filler(gap_bytes, pfn))

    def finish(self, tail: DomainTail) -> None:
        """Write the state of the machine and END."""
        tsc = tail.tsc
        self._record(
            RecordType.X86_TSC_INFO,
            TSC_INFO.pack(tsc.mode, tsc.khz, tsc.nsec, tsc.incarnation, 0),
        )
        if len(tail.shared_info) != FRAME_BYTES:
            raise ValueError(f"a shared info page of {len(tail.shared_info)} bytes")
        self._record(RecordType.SHARED_INFO, tail.shared_info)
        parts = {part: place for place, part in enumerate(VCPU_RECORDS)}
        for state in sorted(tail.vcpus, key=lambda s: (s.vcpu_id, parts[s.part])):
            if state.context:
                self._record(state.part, VCPU_HEADER.pack(state.vcpu_id, 0) + state.context)
        self._record(RecordType.END)

    def _batch(self, pfns: Words, types: PageTypes, data: npt.NDArray[np.uint8]) -> None:
        entries = page_entries(pfns, types).astype("<u8").tobytes()
        length_bytes = PAGE_COUNT.size + len(entries) + data.size
        self._sink.write(
            RECORD_HEADER.pack(RecordType.PAGE_DATA, length_bytes)
            + PAGE_COUNT.pack(len(pfns), 0)
            + entries
        )
        self._sink.write_pages(data)

    def _record(self, type_: RecordType, body: bytes = b"") -> None:
        padding = bytes(-len(body) % RECORD_ALIGN_BYTES)
        self._sink.write(RECORD_HEADER.pack(type_, len(body)) + body + padding)
