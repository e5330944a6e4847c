"""Images of Xen's save format, read from memory, and written as the domain of ``xen_builders``."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
import pytest

from snapvm.memory.bytesource import ByteSource
from snapvm.memory.xenformat import RecordType
from snapvm.memory.xenimage import CONFIG_PADDING_BYTES, EmulatorRecord, ImageReader, ImageWriter
from snapvm.memory.xenrecord import PageBatch, Record, TscInfo, VcpuState
from snapvm.memory.xenwriter import DomainHead, DomainTail
from snapvm.refusals import BadImage
from tests.unit.memory import xen_builders as build


def read(data: bytes, *, with_pages: bool = True) -> list[Record | EmulatorRecord]:
    """Read an image from memory to its end."""
    return list(ImageReader(ByteSource(io.BytesIO(data), "img")).records(with_pages=with_pages))


def refusal(data: bytes) -> BadImage:
    """Read an image that must be refused."""
    with pytest.raises(BadImage) as raised:
        read(data)
    assert 0 <= raised.value.offset_bytes <= len(data)
    return raised.value


def pages_of(records: list[Record | EmulatorRecord]) -> dict[int, bytes]:
    """Collect what PAGE_DATA brought."""
    found: dict[int, bytes] = {}
    for batch in records:
        if isinstance(batch, PageBatch):
            assert batch.data is not None
            pfns = batch.pfns[batch.has_data].tolist()
            found.update(zip(pfns, map(bytes, batch.data), strict=True))
    return found


def write(guest: build.Guest, stream: BinaryIO, *, is_sparse: bool = False) -> None:
    """Write the domain of the builder with our writer."""
    writer = ImageWriter(stream, build.CONFIG, is_sparse=is_sparse)
    writer.begin(
        DomainHead(
            xen_major=4,
            xen_minor=20,
            cpuid_policy=guest.cpuid,
            msr_policy=guest.msrs,
            end_pfn=build.LAST_PFN,
            p2m_pfns=np.array(guest.p2m_pfns, np.uint64),
        )
    )
    for first in range(0, len(guest.order), guest.per_record):
        pfns = guest.order[first : first + guest.per_record]
        data = [guest.pages[pfn] for pfn in pfns if guest.types[pfn] < build.XTAB]
        writer.pages(
            np.array(pfns, np.uint64),
            np.array([guest.types[pfn] for pfn in pfns], np.uint8),
            np.frombuffer(b"".join(data), np.uint8).reshape(-1, 4096),
        )
    parts = [
        (RecordType.X86_PV_VCPU_XSAVE, bytes(832)),
        (RecordType.X86_PV_VCPU_MSRS, b""),
        (RecordType.X86_PV_VCPU_BASIC, bytes(guest.vcpu)),
        (RecordType.X86_PV_VCPU_EXTENDED, bytes(64)),
    ]
    writer.finish(
        DomainTail(
            tsc=TscInfo(mode=1, khz=2_000_000, nsec=123456789, incarnation=7),
            shared_info=guest.shared_info,
            vcpus=[VcpuState(part=part, vcpu_id=0, context=body) for part, body in parts],
        )
    )


def padded(guest: build.Guest) -> build.Guest:
    """Give the builder's configuration the blanks that our writer leaves."""
    to_align = 5
    guest.config = guest.config[:-1] + b" " * (CONFIG_PADDING_BYTES + to_align) + b"\0"
    return guest
