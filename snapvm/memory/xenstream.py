"""Read libxenguest's migration stream, version 2 or 3, record by record.

`read_header` reads the two headers; `read_records` yields the records up to END, each as a value.
Never more than `PAGES_PER_BATCH` pages are in memory, so that a record of 128 MiB comes as several
`PageBatch` values.  Records must have the order that Xen's restorer demands
(tools/libs/guest/xg_sr_restore.c and xg_sr_restore_x86_pv.c):

    X86_PV_INFO  <  STATIC_DATA_END (version 3)  <  X86_PV_P2M_FRAMES  <  PAGE_DATA  <  END

Whatever breaks the specification is `BadImage`, at the byte of the record, or of a wrong entry in
it.  To save memory there are limits that the specification does not have: `MAX_ENTRIES` pages in a
record, `MAX_END_PFN`, `MAX_GFN`, and 16 MiB for a record that is kept whole.

Format: xen.git docs/specs/libxc-migration-stream.pandoc.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

import numpy as np

from snapvm.memory.bytesource import ByteSource
from snapvm.memory.pagingmode import FRAME_BYTES, FRAME_SHIFT, Words
from snapvm.memory.xenformat import (
    CPUID_LEAF_BYTES,
    DOMAIN_HEADER,
    HVM_PARAM_BYTES,
    HVM_PARAM_COUNT,
    IMAGE_BIG_ENDIAN,
    IMAGE_HEADER,
    IMAGE_ID,
    IMAGE_MARKER,
    MSR_ENTRY_BYTES,
    OPTIONAL_RECORD,
    P2M_RANGE,
    PAGE_COUNT,
    PAGE_PFN_BITS,
    PAGE_TYPE_SHIFT,
    PAGES_PER_BATCH,
    PV_INFO,
    RECORD_ALIGN_BYTES,
    RECORD_HEADER,
    RECORD_MAX_BYTES,
    TSC_INFO,
    TYPE_HAS_DATA,
    TYPE_IS_LEGAL,
    VCPU_HEADER,
    VCPU_RECORDS,
    DomainType,
    PageTypes,
    RecordType,
    frames_of_p2m,
)
from snapvm.memory.xenrecord import (
    Blob,
    P2mFrames,
    PageBatch,
    PvInfo,
    Record,
    SharedInfo,
    StreamHeader,
    TscInfo,
    VcpuState,
)

MAX_ENTRIES: Final = 1 << 18
MAX_END_PFN: Final = (1 << 28) - 1
"""For a PV guest of 1 TiB."""
MAX_GFN: Final = (1 << 32) - 1
"""For an HVM guest of 16 TiB."""
_MAX_BLOB_BYTES: Final = 16 << 20
_VERSIONS: Final = (2, 3)
_PV_WIDTHS: Final = {(8, 4), (4, 3)}


def read_header(source: ByteSource) -> StreamHeader:
    """Read the image header and the domain header."""
    start = source.offset_bytes
    marker, ident, version, options, zero, zero_too = IMAGE_HEADER.unpack(
        source.read(IMAGE_HEADER.size, "the image header")
    )
    if (marker, ident) != (IMAGE_MARKER, IMAGE_ID):
        raise source.bad("no libxc stream begins here", at=start)
    if version not in _VERSIONS:
        raise source.bad(f"version {version} of the libxc stream is unknown", at=start + 12)
    if options & IMAGE_BIG_ENDIAN:
        raise source.bad("the libxc stream is of a big-endian host", at=start + 16)
    if options or zero or zero_too:
        raise source.bad("reserved bits of the image header are set", at=start + 16)
    start = source.offset_bytes
    type_, page_shift, zero, major, minor = DOMAIN_HEADER.unpack(
        source.read(DOMAIN_HEADER.size, "the domain header")
    )
    if type_ not in set(DomainType):
        raise source.bad(f"domain type {type_} is unknown", at=start)
    if page_shift != FRAME_SHIFT or zero:
        raise source.bad("page size or reserved bits of the domain header are wrong", at=start + 4)
    return StreamHeader(
        version=version, domain_type=DomainType(type_), xen_major=major, xen_minor=minor
    )


def read_records(
    source: ByteSource, header: StreamHeader, *, with_pages: bool = True
) -> Iterator[Record]:
    """Yield the records up to END, which is read too; without ``with_pages`` pages are skipped."""
    return _Reader(source=source, header=header, with_pages=with_pages).records()


@dataclass(slots=True, kw_only=True)
class _Reader:
    """The state of one reading: the types of records seen so far, and the present record."""

    source: ByteSource
    header: StreamHeader
    with_pages: bool
    seen: set[RecordType] = field(default_factory=set)
    width_bytes: int = 0
    end_pfn: int = MAX_GFN
    start: int = 0
    length_bytes: int = 0

    def records(self) -> Iterator[Record]:
        while True:
            self.start = self.source.offset_bytes
            number, self.length_bytes = RECORD_HEADER.unpack(
                self.source.read(RECORD_HEADER.size, "a record's header")
            )
            if self.length_bytes > RECORD_MAX_BYTES:
                raise self.bad(f"a record of {self.length_bytes} bytes, more than there can be")
            if number & OPTIONAL_RECORD:
                self.source.skip(self.length_bytes, "an optional record")
                self.pad()
                continue
            if number not in _KNOWN:
                raise self.bad(f"record type {number:#x} is unknown")
            type_ = RecordType(number)
            self.check_order(type_)
            self.seen.add(type_)
            yield from self.record(type_)
            self.pad()
            if type_ is RecordType.END:
                return

    def bad(self, why: str) -> Exception:
        return self.source.bad(why, at=self.start)

    def pad(self) -> None:
        padding = -self.length_bytes % RECORD_ALIGN_BYTES
        if self.source.read(padding, "a record's padding").strip(b"\0"):
            raise self.bad("the padding of the record is not zero")

    def check_order(self, type_: RecordType) -> None:
        if type_ in _ONCE and type_ in self.seen:
            raise self.bad(f"a second {type_.name} record")
        if type_ not in _ALLOWED[self.header.domain_type]:
            raise self.bad(f"a {type_.name} record has no place here")
        static = RecordType.STATIC_DATA_END
        if self.header.version == _VERSIONS[0] and type_ in _VERSION_3:
            raise self.bad(f"a {type_.name} record in a stream of version 2")
        for needed in _NEEDS.get(type_, ()):
            is_due = needed in _ALLOWED[self.header.domain_type] and not (
                needed is static and self.header.version == _VERSIONS[0]
            )
            if is_due and needed not in self.seen:
                raise self.bad(f"a {type_.name} record before {needed.name}")

    def record(self, type_: RecordType) -> Iterator[Record]:
        if type_ is RecordType.PAGE_DATA:
            yield from self.page_data()
        elif type_ is RecordType.X86_PV_P2M_FRAMES:
            yield self.p2m_frames()
        elif type_ in _EMPTY:
            self.expect(0)
        elif type_ in VCPU_RECORDS:
            yield self.vcpu(type_)
        else:
            yield self.small(type_)

    def small(self, type_: RecordType) -> Record:
        if type_ is RecordType.X86_PV_INFO:
            return self.pv_info()
        if type_ is RecordType.X86_TSC_INFO:
            mode, khz, nsec, incarnation, zero = self.fixed(TSC_INFO)
            if zero:
                raise self.bad("reserved bits of the X86_TSC_INFO record are set")
            return TscInfo(mode=mode, khz=khz, nsec=nsec, incarnation=incarnation)
        if type_ is RecordType.SHARED_INFO:
            self.expect(FRAME_BYTES)
            return SharedInfo(page=self.source.read(FRAME_BYTES, "the shared info page"))
        return self.blob(type_)

    def expect(self, length_bytes: int) -> None:
        if self.length_bytes != length_bytes:
            raise self.bad(f"a record of {self.length_bytes} bytes that should have {length_bytes}")

    def fixed(self, layout: Struct) -> tuple[int, ...]:
        self.expect(layout.size)
        return layout.unpack(self.source.read(layout.size, "a record"))

    def pv_info(self) -> PvInfo:
        width_bytes, levels, zero, zero_too = self.fixed(PV_INFO)
        if (width_bytes, levels) not in _PV_WIDTHS:
            raise self.bad(f"a guest of {width_bytes} bytes and {levels} levels cannot be")
        if zero or zero_too:
            raise self.bad("reserved bits of the X86_PV_INFO record are set")
        self.width_bytes = width_bytes
        return PvInfo(width_bytes=width_bytes, levels=levels)

    def p2m_frames(self) -> P2mFrames:
        if self.length_bytes < P2M_RANGE.size:
            raise self.bad("an X86_PV_P2M_FRAMES record that is too short")
        start_pfn, end_pfn = P2M_RANGE.unpack(self.source.read(P2M_RANGE.size, "the p2m range"))
        if start_pfn != 0 or end_pfn > MAX_END_PFN:
            raise self.bad(f"a p2m from {start_pfn:#x} to {end_pfn:#x}, which is not taken")
        count = frames_of_p2m(end_pfn, self.width_bytes)
        self.expect(P2M_RANGE.size + count * 8)
        pfns = np.frombuffer(self.source.read(count * 8, "the p2m frames"), "<u8")
        self.end_pfn = end_pfn
        return P2mFrames(offset_bytes=self.start, end_pfn=end_pfn, pfns=pfns)

    def page_data(self) -> Iterator[PageBatch]:
        if self.length_bytes < PAGE_COUNT.size:
            raise self.bad("a PAGE_DATA record that is too short")
        count, zero = PAGE_COUNT.unpack(self.source.read(PAGE_COUNT.size, "PAGE_DATA"))
        room = (self.length_bytes - PAGE_COUNT.size) // 8
        if zero or not 0 < count <= min(room, MAX_ENTRIES):
            raise self.bad(f"a PAGE_DATA record of {self.length_bytes} bytes for {count} pages")
        entries_at = self.source.offset_bytes
        entries = np.frombuffer(self.source.read(count * 8, "the entries of PAGE_DATA"), "<u8")
        pfns, types = self.split(entries, entries_at)
        self.expect(PAGE_COUNT.size + count * 8 + int(TYPE_HAS_DATA[types].sum()) * FRAME_BYTES)
        for first in range(0, count, PAGES_PER_BATCH):
            part = slice(first, first + PAGES_PER_BATCH)
            yield self.batch(entries_at + first * 8, pfns[part], types[part])

    def split(self, entries: Words, entries_at: int) -> tuple[Words, PageTypes]:
        types = (entries >> np.uint64(PAGE_TYPE_SHIFT)).astype(np.uint8)
        pfns = entries & np.uint64((1 << PAGE_TYPE_SHIFT) - 1)
        wrong = ~TYPE_IS_LEGAL[types] | (pfns > np.uint64(self.end_pfn))
        if wrong.any():
            at = int(np.argmax(wrong))
            entry = int(entries[at])
            if entry >> PAGE_PFN_BITS & 0xFF or not TYPE_IS_LEGAL[types[at]]:
                why = f"the page entry {entry:#x} sets reserved bits or an unknown type"
            else:
                why = f"page frame {int(pfns[at]):#x} is beyond the last, {self.end_pfn:#x}"
            raise self.source.bad(why, at=entries_at + at * 8)
        return pfns, types

    def batch(self, offset_bytes: int, pfns: Words, types: PageTypes) -> PageBatch:
        pages = int(TYPE_HAS_DATA[types].sum())
        data_at = self.source.offset_bytes
        data = None
        if self.with_pages:
            data = self.source.read_pages(pages, "the pages of PAGE_DATA")
        else:
            self.source.skip(pages * FRAME_BYTES, "the pages of PAGE_DATA")
        return PageBatch(
            offset_bytes=offset_bytes,
            pfns=pfns,
            types=types,
            data_offset_bytes=data_at,
            data=data,
        )

    def vcpu(self, part: RecordType) -> VcpuState:
        if not VCPU_HEADER.size <= self.length_bytes <= _MAX_BLOB_BYTES:
            raise self.bad(f"a {part.name} record of {self.length_bytes} bytes")
        vcpu_id, zero = VCPU_HEADER.unpack(self.source.read(VCPU_HEADER.size, "a vCPU's header"))
        if zero:
            raise self.bad(f"reserved bits of the {part.name} record are set")
        context = self.source.read(self.length_bytes - VCPU_HEADER.size, "a vCPU's state")
        return VcpuState(offset_bytes=self.start, part=part, vcpu_id=vcpu_id, context=context)

    def blob(self, type_: RecordType) -> Blob:
        if self.length_bytes > _MAX_BLOB_BYTES:
            raise self.bad(f"a {type_.name} record of {self.length_bytes} bytes")
        body = self.source.read(self.length_bytes, f"the {type_.name} record")
        unit = _UNIT_BYTES.get(type_, 1)
        if type_ is RecordType.HVM_PARAMS:
            fits = len(body) >= HVM_PARAM_COUNT.size and len(body) == (
                HVM_PARAM_COUNT.size + HVM_PARAM_COUNT.unpack_from(body)[0] * HVM_PARAM_BYTES
            )
        else:
            fits = len(body) > 0 and len(body) % unit == 0
        if not fits:
            raise self.bad(f"a {type_.name} record of {len(body)} bytes, which cannot be right")
        return Blob(type=type_, body=body)


_KNOWN: Final = frozenset(RecordType)
_EMPTY: Final = {RecordType.END, RecordType.STATIC_DATA_END}
_UNIT_BYTES: Final = {
    RecordType.X86_CPUID_POLICY: CPUID_LEAF_BYTES,
    RecordType.X86_MSR_POLICY: MSR_ENTRY_BYTES,
}
_POLICIES: Final = {RecordType.X86_CPUID_POLICY, RecordType.X86_MSR_POLICY}
_VERSION_3: Final = {RecordType.STATIC_DATA_END, *_POLICIES}
_ONCE: Final = {
    RecordType.X86_PV_INFO,
    RecordType.STATIC_DATA_END,
    RecordType.X86_PV_P2M_FRAMES,
    RecordType.SHARED_INFO,
    RecordType.X86_TSC_INFO,
    *_POLICIES,
}
_NEEDS: Final = {
    RecordType.X86_PV_P2M_FRAMES: (RecordType.X86_PV_INFO, RecordType.STATIC_DATA_END),
    RecordType.PAGE_DATA: (RecordType.STATIC_DATA_END, RecordType.X86_PV_P2M_FRAMES),
    RecordType.SHARED_INFO: (RecordType.X86_PV_INFO,),
    RecordType.END: (RecordType.STATIC_DATA_END, RecordType.X86_PV_P2M_FRAMES),
}
# VERIFY, CHECKPOINT and the dirty list are for live replication, and no release writes TOOLSTACK:
# a file with one of them cannot be restored as an image.
_ANY: Final = {
    RecordType.END,
    RecordType.PAGE_DATA,
    RecordType.X86_TSC_INFO,
    RecordType.STATIC_DATA_END,
    *_POLICIES,
}
_ALLOWED: Final = {
    DomainType.PV: _ANY
    | {RecordType.X86_PV_INFO, RecordType.X86_PV_P2M_FRAMES, RecordType.SHARED_INFO}
    | set(VCPU_RECORDS),
    DomainType.HVM: _ANY | {RecordType.HVM_CONTEXT, RecordType.HVM_PARAMS},
}
