"""Images of Xen's save format: read, written, and refused when they are not what they should be."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapvm.failures import StorageFailed
from snapvm.memory.bytesource import ByteSource
from snapvm.memory.xenformat import RecordType
from snapvm.memory.xenimage import (
    CONFIG_PADDING_BYTES,
    EmulatorRecord,
    ImageReader,
    ImageWriter,
    open_image,
    replace_config,
)
from snapvm.memory.xenrecord import (
    Blob,
    P2mFrames,
    PageBatch,
    PvInfo,
    Record,
    SharedInfo,
    TscInfo,
    VcpuState,
)
from snapvm.memory.xenwriter import DomainHead, DomainTail
from snapvm.refusals import BadImage
from tests.unit.memory import xen_builders as build

GOOD = build.Guest().encode()


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


def write(guest: build.Guest, stream: io.BufferedIOBase, *, is_sparse: bool = False) -> None:
    """Write the domain of the builder with our writer."""
    writer = ImageWriter(stream, build.CONFIG, is_sparse=is_sparse)  # type: ignore[arg-type]
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
    guest.config = guest.config[:-1] + b" " * CONFIG_PADDING_BYTES + b"\0"
    return guest


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
    guest = build.Guest()
    with open_image(path) as image:
        for batch in image.records(with_pages=False):
            if isinstance(batch, PageBatch):
                assert batch.data is None
                for row, pfn in enumerate(batch.pfns[batch.has_data].tolist()):
                    at = batch.data_offset_bytes + row * 4096
                    assert GOOD[at : at + 4096] == guest.pages[pfn]


def test_a_large_record_comes_in_batches() -> None:
    guest = build.Guest(per_record=5000, order=[7] * 2500)
    batches = [r for r in read(guest.encode()) if isinstance(r, PageBatch)]
    assert [len(batch.pfns) for batch in batches] == [1024, 1024, 452]
    assert pages_of(list(batches)) == {7: guest.pages[7]}


def test_what_is_written_is_byte_for_byte_what_the_specification_says() -> None:
    stream = io.BytesIO()
    write(build.Guest(), stream)
    assert stream.getvalue() == padded(build.Guest()).encode()


def test_more_pages_than_fit_a_record_are_divided() -> None:
    stream = io.BytesIO()
    write(build.Guest(per_record=1500, order=[*range(600), *range(600), *range(300)]), stream)
    records = read(stream.getvalue())
    assert pages_of(records) == build.Guest().pages
    counts = [len(batch.pfns) for batch in records if isinstance(batch, PageBatch)]
    assert counts == [1024, 476]


def test_a_sparse_image_has_the_same_bytes(tmp_path: Path) -> None:
    guest = build.Guest()
    for pfn in [*range(100, 300), 127]:
        guest.pages[pfn] = bytes(4096)
    with (tmp_path / "sparse").open("wb") as stream:
        write(guest, stream, is_sparse=True)
    data = (tmp_path / "sparse").read_bytes()
    assert data == padded(guest).encode()
    assert (tmp_path / "sparse").stat().st_blocks * 512 < len(data) - 150 * 4096


def test_a_writer_refuses_what_it_cannot_write() -> None:
    writer = ImageWriter(io.BytesIO(), "{}")
    with pytest.raises(ValueError, match="2 p2m frames"):
        writer.begin(
            DomainHead(xen_major=4, xen_minor=20, end_pfn=511, p2m_pfns=np.zeros(2, np.uint64))
        )
    writer.begin(
        DomainHead(xen_major=4, xen_minor=20, end_pfn=511, p2m_pfns=np.zeros(1, np.uint64))
    )
    one, page = np.zeros(1, np.uint8), np.zeros((1, 4096), np.uint8)
    writer.pages(np.array([511], np.uint64), one, page)
    for pfn, type_, data in [(512, 0, page), (1, 5, page[:0]), (1, 0xF, page), (1, 0, page[:0])]:
        with pytest.raises(ValueError, match="page"):
            writer.pages(np.array([pfn], np.uint64), one + np.uint8(type_), data)
    with pytest.raises(ValueError, match="NUL"):
        ImageWriter(io.BytesIO(), "\0")


@pytest.mark.skipif(shutil.which("xl") is None, reason="Xen's tools are not installed")
def test_xens_own_checker_accepts_what_is_written(tmp_path: Path) -> None:
    (checker,) = Path("/usr/lib").glob("xen-*/bin/verify-stream-v2")
    with (tmp_path / "img").open("wb") as stream:
        write(build.Guest(), stream)
    done = subprocess.run(
        [sys.executable, checker, "-f", "xl", "-i", tmp_path / "img"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_configuration_can_be_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "img"
    with path.open("wb") as stream:
        write(build.Guest(), stream)
    before = path.read_bytes()
    longer = '{"c_info":{"name":"' + "x" * 5000 + '"}}'
    assert replace_config(path, longer)
    with open_image(path) as image:
        assert image.config == longer
        assert pages_of(list(image.records())) == build.Guest().pages
    assert replace_config(path, build.CONFIG)
    assert path.read_bytes() == before
    assert not replace_config(path, "x" * (CONFIG_PADDING_BYTES + len(build.CONFIG) + 1))
    assert path.read_bytes() == before


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


# --- what is not an image -----------------------------------------------------------------------


def spot(piece: int, at: int, new: bytes) -> bytes:
    """Overwrite bytes of one piece of a good image; pieces count without the pages."""
    guest = build.Guest(order=[1, 2])
    pieces = [*guest.before_pages(), guest.page_records(), *guest.after_pages()]
    old = pieces[piece]
    at %= len(old)
    pieces[piece] = old[:at] + new + old[at + len(new) :]
    return b"".join(pieces)


U32 = struct.Struct("<I").pack
ONES = bytes([255])
DAMAGE = {
    "magic": (0, 0, b"Y", "no image"),
    "byte order": (0, 32, b"\1\2\3\4", "byte order"),
    "legacy stream": (0, 36, U32(1), "flags"),
    "unknown mandatory flag": (0, 36, U32(7), "flags"),
    "a configuration of gigabytes": (0, 44, U32(0xFFFFFFF0), "configuration of"),
    "a configuration longer than its room": (0, 48, U32(0x1000), "longer than its room"),
    "a configuration that is no text": (0, 55, ONES, "UTF-8"),
    "libxl ident": (1, 0, b"l", "libxl stream"),
    "libxl version": (1, 11, b"\3", "libxl stream"),
    "libxl options": (1, 15, b"\1", "options"),
    "libxl record": (1, 16, U32(9), "type 0x9"),
    "no context": (1, 16, U32(0), "LIBXC_CONTEXT"),
    "libxc marker": (2, 0, b"\0", "libxc stream"),
    "libxc version": (2, 15, b"\4", "version 4"),
    "big endian": (2, 17, b"\1", "big-endian"),
    "options": (2, 17, b"\2", "reserved"),
    "domain type": (2, 24, U32(3), "domain type 3"),
    "page shift": (2, 28, b"\15", "page size"),
    "guest width": (3, 8, b"\4", "4 bytes and 4 levels"),
    "PV_INFO reserved": (3, 12, b"\1", "reserved"),
    "unknown record": (3, 0, U32(0x13), "type 0x13"),
    "a record of 4 GiB": (3, 4, U32(0xFFFFFFFF), "more than there can be"),
    "policy length": (4, 4, U32(40), "does not come out"),
    "p2m start": (5, 8, U32(1), "p2m from"),
    "p2m end": (5, 12, U32(0xFFFFFFFF), "p2m from"),
    "p2m length": (5, 12, U32(1024), "bytes that should have"),
    "pages: none": (6, 8, U32(0), "for 0 pages"),
    "pages: too many": (6, 8, U32(0x7FFFFFFF), "pages"),
    "pages: reserved": (6, 12, ONES, "PAGE_DATA"),
    "pages: type": (6, 23, b"\x70", "unknown type"),
    "pages: reserved bits": (6, 22, b"\x10", "reserved bits"),
    "pages: beyond": (6, 18, b"\1", "beyond the last"),
    "pages: length": (6, 23, b"\xf0", "bytes that should have"),
    "tsc reserved": (7, 28, ONES, "reserved"),
    "shared info length": (8, 4, U32(8), "should have 4096"),
    "vcpu reserved": (9, 12, ONES, "reserved"),
    "vcpu length": (9, 4, U32(4), "X86_PV_VCPU_BASIC"),
    "END with a body": (12, 4, U32(8), "should have 0"),
    "libxl END with a body": (13, 4, U32(8), "with a body"),
    "an emulator in a PV domain": (13, 0, U32(3), "no place"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_place(name: str) -> None:
    piece, at, new, words = DAMAGE[name]
    assert words in refusal(spot(piece, at, new)).why


def test_order_is_what_the_restorer_demands() -> None:
    guest = build.Guest(order=[1])
    head, tail = guest.before_pages(), guest.after_pages()
    page = guest.page_records()
    static = build.record(0x10)
    wrong = {
        "PAGE_DATA record before X86_PV_P2M_FRAMES": [*head[:5], page, head[5], *tail],
        "PAGE_DATA record before STATIC_DATA_END": [*head[:4], page, *head[4:], *tail],
        "SHARED_INFO record before X86_PV_INFO": [*head[:3], tail[1], *head[3:], page, *tail],
        "second STATIC_DATA_END": [*head[:5], static, head[5], page, *tail],
        "X86_PV_P2M_FRAMES record before X86_PV_INFO": [*head[:3], *head[4:], page, *tail],
        "END record before X86_PV_P2M_FRAMES": [*head[:5], *tail],
        "VERIFY record has no place": [*head, build.record(0xD), page, *tail],
        "CHECKPOINT record has no place": [*head, page, build.record(0xE), *tail],
        "HVM_PARAMS record has no place": [*head, page, build.record(0xA, bytes(8)), *tail],
        "padding of the record is not zero": [*head, page, build.record(4, bytes(9))[:-1], ONES],
    }
    for words, pieces in wrong.items():
        assert words in refusal(b"".join(pieces)).why


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
    emulator = build.record(3, struct.pack("<II", 2, 0) + b"qemu!")
    data = b"".join([*head[:2], domain, head[4], *records, emulator, build.record(0)])
    *_, context, hvm_params, qemu = read(data)
    assert context == Blob(type=RecordType.HVM_CONTEXT, body=b"state")
    assert hvm_params == Blob(type=RecordType.HVM_PARAMS, body=params)
    assert isinstance(qemu, EmulatorRecord)
    assert (qemu.emulator_id, qemu.index, qemu.length_bytes) == (2, 0, 5)
    assert data[qemu.offset_bytes :][:5] == b"qemu!"


SMALL = build.Guest(order=[1, 2, 595]).encode()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SMALL) - 1))
@example(0)
@example(len(SMALL) - 1)
def test_a_truncated_image_ends_in_a_refusal(length: int) -> None:
    assert "it ends" in refusal(SMALL[:length]).why


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 8 * len(SMALL) - 1))
def test_a_flipped_bit_is_refused_or_harmless(bit: int) -> None:
    data = bytearray(SMALL)
    data[bit // 8] ^= 1 << bit % 8
    try:
        read(bytes(data))
    except BadImage as refused:
        assert 0 <= refused.offset_bytes <= len(data)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=24) | st.integers(0, 20), max_size=12), st.integers(0, 7))
def test_hostile_records_are_refused_or_read(parts: list[bytes | int], keep: int) -> None:
    pieces = build.Guest(order=[1]).before_pages()[:keep]
    for part in parts:
        pieces.append(struct.pack("<II", part, 0) if isinstance(part, int) else part)
    with suppress(BadImage):
        read(b"".join(pieces))


def test_a_claim_of_gigabytes_costs_no_memory() -> None:
    head = b"".join(build.Guest().before_pages())
    huge = 128 << 20
    claims = [
        struct.pack("<IIII", 1, huge, 1 << 20, 0),
        struct.pack("<III", 4, huge, 0) + bytes(4),
        struct.pack("<II", 4, 16 << 20) + bytes(8),
        struct.pack("<II", 0x11, 16 << 20),
        struct.pack("<II", 0x80000000, huge),
    ]
    for claim in claims:
        tracemalloc.start()
        refusal(head + claim)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 4 << 20
