"""Read single pages of an xl image: one reading of the file makes an index of all pages.

`survey` reads the file once, without its pages, and returns a `Survey`: the state of the domain,
the index, and `Survey.read_frame` for the page-table walker.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from snapvm import memoryroom
from snapvm.failures import StorageFailed
from snapvm.memory import pageindex
from snapvm.memory.bytesource import ByteSource
from snapvm.memory.pageindex import PageIndex
from snapvm.memory.pagingmode import FRAME_BYTES, Words
from snapvm.memory.xenformat import LibxlRecord, RecordType
from snapvm.memory.xenimage import EmulatorRecord, ImageReader
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
from snapvm.memory.xenstream import MAX_GFN
from snapvm.memory.xenvcpu import LAYOUTS, VcpuFrames, vcpu_frames
from snapvm.refusals import BadImage, HostLacks, UnreadableFile

_SMALL_BYTES: Final = 64 << 20
_MAX_VCPUS: Final = 8192
"""MAX_VIRT_CPUS (arch-x86/xen.h)."""


@dataclass(slots=True, kw_only=True)
class Survey:
    """What one reading of an image has found; the file is still open."""

    path: Path
    config: str
    header: StreamHeader
    size_bytes: int
    end_offset_bytes: int = 0
    pv_info: PvInfo | None = None
    p2m: P2mFrames | None = None
    vcpus: dict[int, VcpuFrames] = field(default_factory=dict)
    odd_contexts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """vCPUs whose context has a wrong length: the offset of the record, and that length."""
    has_shared_info: bool = False
    has_tsc_info: bool = False
    hvm_context: bytes | None = None
    """The state of an HVM or PVH domain's machine."""
    has_hvm_params: bool = False
    has_device_model: bool = False
    """Whether the state of an HVM domain's QEMU is there."""
    index: PageIndex = field(init=False)
    _descriptor: int = -1

    @property
    def end_pfn(self) -> int:
        """The largest PFN that the domain can have."""
        return self.p2m.end_pfn if self.p2m is not None else MAX_GFN

    def read_frame(self, pfn: int) -> bytes | None:
        """Return a page's data, or None when the image has none; the walker's `FrameReader`."""
        if not 0 <= pfn <= self.end_pfn:
            return None
        offset = int(self.index.offsets(np.array([pfn], np.uint64))[0])
        return self._page(offset) if offset else None

    def read_tables(self, pfns: Words) -> Words:
        """Return the pages of PFNs as entries, shape (n, 512); all of them must have data."""
        pages = b"".join(self._page(offset) for offset in self.index.offsets(pfns).tolist())
        tables: Words = np.frombuffer(pages, "<u8").reshape(-1, FRAME_BYTES // 8)
        return tables

    def _page(self, offset_bytes: int) -> bytes:
        try:
            page = os.pread(self._descriptor, FRAME_BYTES, offset_bytes)
        except OSError as error:
            raise StorageFailed(path=str(self.path), why=str(error)) from error
        if len(page) != FRAME_BYTES:
            why = "a page is missing: the file was shortened while it was read"
            raise BadImage(path=str(self.path), offset_bytes=offset_bytes, why=why)
        return page


@contextmanager
def survey(path: Path) -> Iterator[Survey]:
    """Read an image, which must be a regular file, and keep it open during the block.

    Raises `BadImage` for anything that the format forbids, and ``HostLacks`` where there is not
    the memory for an index of so large an image.
    """
    with _opened(path) as stream:
        _require_room(os.fstat(stream.fileno()).st_size)
        image = ImageReader(ByteSource(stream, str(path)))
        found = Survey(
            path=path,
            config=image.config,
            header=image.header,
            size_bytes=os.fstat(stream.fileno()).st_size,
            _descriptor=stream.fileno(),
        )
        found.index = PageIndex(str(path), MAX_GFN)
        for record in image.records(with_pages=False):
            _enter(found, record)
        found.end_offset_bytes = image.end_offset_bytes
        yield found


def _opened(path: Path) -> BinaryIO:
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnreadableFile(path=str(path), why=error.strerror or str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnreadableFile(path=str(path), why="it is not a regular file")
    return open(descriptor, "rb")


def _require_room(image_bytes: int) -> None:
    """Raise ``HostLacks`` for an image whose index might cost the host one of its daemons."""
    needed_bytes, free_bytes = pageindex.needed_bytes(image_bytes), memoryroom.available_bytes()
    if needed_bytes > max(free_bytes, _SMALL_BYTES):
        raise HostLacks(
            what=f"{needed_bytes >> 20} MiB of memory for an index of the image; it can spare "
            f"{free_bytes >> 20} MiB",
            remedy="give the control domain more (`xl mem-set 0 SIZE`), or do it on another host",
        )


def _enter(found: Survey, record: Record | EmulatorRecord) -> None:
    match record:
        case PageBatch():
            found.index.add(record)
        case PvInfo():
            found.pv_info = record
        case P2mFrames():
            found.p2m = record
            found.index = PageIndex(str(found.path), record.end_pfn)
        case SharedInfo():
            found.has_shared_info = True
        case TscInfo():
            found.has_tsc_info = True
        case Blob(type=RecordType.HVM_CONTEXT):
            found.hvm_context = record.body
        case Blob(type=RecordType.HVM_PARAMS):
            found.has_hvm_params = True
        case EmulatorRecord(type=LibxlRecord.EMULATOR_CONTEXT):
            found.has_device_model = True
        case VcpuState(part=RecordType.X86_PV_VCPU_BASIC):
            _enter_vcpu(found, record)


def _enter_vcpu(found: Survey, state: VcpuState) -> None:
    if state.vcpu_id >= _MAX_VCPUS:
        why = f"vCPU {state.vcpu_id}, though a domain cannot have so many"
        raise BadImage(path=str(found.path), offset_bytes=state.offset_bytes, why=why)
    width_bytes = found.pv_info.width_bytes if found.pv_info is not None else 8
    if len(state.context) != LAYOUTS[width_bytes].context_bytes:
        found.odd_contexts[state.vcpu_id] = (state.offset_bytes, len(state.context))
        return
    found.vcpus[state.vcpu_id] = vcpu_frames(state.vcpu_id, state.context, width_bytes)
