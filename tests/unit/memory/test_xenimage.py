"""Images of Xen's save format: everything in one is read, of each kind there is."""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path

import pytest

from snapvm.failures import StorageFailed
from snapvm.memory.bytesource import ByteSource
from snapvm.memory.xenformat import RecordType
from snapvm.memory.xenimage import EmulatorRecord, ImageReader, open_image
from snapvm.memory.xenrecord import (
    Blob,
    P2mFrames,
    PageBatch,
    PvInfo,
    SharedInfo,
    TscInfo,
    VcpuState,
)
from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_images import pages_of, read, refusal

GOOD = build.Guest().encode()


def test_everything_in_an_image_is_read() -> None:
    guest = build.Guest()
    image = ImageReader(ByteSource(io.BytesIO(GOOD), "img"))
    assert image.config == build.CONFIG
    assert (image.header.xen_major, image.header.xen_minor) == (4, 20)
    records = list(image.records())
    assert image.end_offset_bytes == len(GOOD)
    assert pages_of(records) == guest.pages
    (p2m,) = (r for r in records if isinstance(r, P2mFrames))
    assert (p2m.end_pfn, p2m.pfns.tolist()) == (build.LAST_PFN, guest.p2m_pfns)
    others = [r for r in records if not isinstance(r, PageBatch | P2mFrames | VcpuState)]
    assert others == [
        PvInfo(width_bytes=8, levels=4),
        Blob(type=RecordType.X86_CPUID_POLICY, body=guest.cpuid),
        Blob(type=RecordType.X86_MSR_POLICY, body=guest.msrs),
        TscInfo(mode=1, khz=2_000_000, nsec=123456789, incarnation=7),
        SharedInfo(page=guest.shared_info),
    ]
    states = [r for r in records if isinstance(r, VcpuState)]
    assert [(s.part.value, s.vcpu_id, len(s.context)) for s in states] == [
        (4, 0, 5168),
        (5, 0, 64),
        (6, 0, 832),
    ]


def test_pages_can_be_skipped_and_found_again_by_their_offset(tmp_path: Path) -> None:
    path = tmp_path / "img"
    path.write_bytes(GOOD)
    found: dict[int, bytes] = {}
    with open_image(path) as image:
        for batch in image.records(with_pages=False):
            if isinstance(batch, PageBatch):
                assert batch.data is None
                for row, pfn in enumerate(batch.pfns[batch.has_data].tolist()):
                    at = batch.data_offset_bytes + row * 4096
                    found[pfn] = GOOD[at : at + 4096]
    assert found == build.Guest().pages


def test_a_large_record_comes_in_batches() -> None:
    guest = build.Guest(per_record=5000, order=[7] * 2500)
    batches = [r for r in read(guest.encode()) if isinstance(r, PageBatch)]
    assert [len(batch.pfns) for batch in batches] == [1024, 1024, 452]
    assert pages_of(list(batches)) == {7: guest.pages[7]}


def test_a_pipe_reads_as_a_file_does() -> None:
    guest = build.Guest(order=list(range(12)))
    reading, writing = os.pipe()
    os.write(writing, guest.encode())  # less than a pipe holds
    os.close(writing)
    with open(reading, "rb") as stream:
        batches = ImageReader(ByteSource(stream, "pipe")).records(with_pages=False)
        assert sum(len(b.pfns) for b in batches if isinstance(b, PageBatch)) == 12


def test_what_is_not_there_is_a_storage_failure(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StorageFailed), open_image(path):
            pass


class Broken(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, _count: int | None = -1) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    def readinto(self, _buffer: object) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_fails_is_told_of_without_its_number() -> None:
    source = ByteSource(Broken(), "/images/a")
    for attempt in (lambda: source.read(1, "a byte"), lambda: source.read_pages(1, "a page")):
        with pytest.raises(StorageFailed) as failed:
            attempt()
        assert str(failed.value) == "/images/a: Input/output error"


def test_optional_records_are_passed_over() -> None:
    guest = build.Guest(order=[1])
    extra = build.record(0x80000005, b"whatever")
    data = b"".join([*guest.before_pages(), extra, guest.page_records(), *guest.after_pages()])
    assert pages_of(read(data)) == {1: guest.pages[1]}


def test_a_version_2_stream_has_no_static_data_end() -> None:
    guest = build.Guest(order=[1])
    head = guest.before_pages()
    old = head[2].replace(b"XENF\0\0\0\3", b"XENF\0\0\0\2")
    rest = [head[5], guest.page_records(), *guest.after_pages()]
    assert pages_of(read(b"".join([*head[:2], old, head[3], *rest]))) == {1: guest.pages[1]}
    assert "version 2" in refusal(b"".join([*head[:2], old, head[3], head[4], *rest])).why


def test_an_hvm_image_gives_its_emulator_records() -> None:
    head = build.Guest().before_pages()
    domain = head[2].replace(struct.pack("<IHHII", 1, 12, 0, 4, 20), b"\2" + bytes(3)) + (
        struct.pack("<HHII", 12, 0, 4, 20)
    )
    params = struct.pack("<IIQQ", 1, 0, 1, 2)
    records = [build.record(0x9, b"state"), build.record(0xA, params), build.record(0)]
    keys = build.record(2, struct.pack("<II", 2, 0) + b"keys")
    emulator = build.record(3, struct.pack("<II", 2, 0) + b"qemu!")
    data = b"".join([*head[:2], domain, head[4], *records, keys, emulator, build.record(0)])
    *_, context, hvm_params, xenstore, qemu = read(data)
    assert context == Blob(type=RecordType.HVM_CONTEXT, body=b"state")
    assert hvm_params == Blob(type=RecordType.HVM_PARAMS, body=params)
    assert isinstance(xenstore, EmulatorRecord) and xenstore.length_bytes == 4
    assert isinstance(qemu, EmulatorRecord)
    assert (qemu.emulator_id, qemu.index, qemu.length_bytes) == (2, 0, 5)
    assert data[qemu.offset_bytes :][:5] == b"qemu!"
    assert data[qemu.offset_bytes :][:5] == b"qemu!"
