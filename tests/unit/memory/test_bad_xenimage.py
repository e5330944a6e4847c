"""What is no image of Xen's is refused, with its place, and costs no memory."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapvm.refusals import BadImage
from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_images import read, refusal


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
    "magic": (0, 0, b"Y", "not an image"),
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
    "policy length": (4, 4, U32(40), "cannot be right"),
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


def test_a_record_without_a_body_is_not_taken_for_a_state() -> None:
    image = build.hvm_image(build.record(9), build.HVM_PARAMS)
    assert "HVM_CONTEXT record of 0 bytes" in refusal(image).why


SMALL = build.Guest(order=[1, 2, 595]).encode()


@settings(max_examples=60)
@given(st.integers(0, len(SMALL) - 1))
@example(0)
@example(len(SMALL) - 1)
def test_a_truncated_image_ends_in_a_refusal(length: int) -> None:
    assert "it ends" in refusal(SMALL[:length]).why


@settings(max_examples=120)
@given(st.integers(0, 8 * len(SMALL) - 1))
def test_a_flipped_bit_is_refused_or_harmless(bit: int) -> None:
    data = bytearray(SMALL)
    data[bit // 8] ^= 1 << bit % 8
    try:
        read(bytes(data))
    except BadImage as refused:
        assert 0 <= refused.offset_bytes <= len(data)


@settings(max_examples=40)
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
