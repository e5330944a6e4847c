"""The walker against a second, naive one; and its holes, runs and reverse look-ups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm.memory.paging import Hole, Mapping, Why, mappings, translate, walk, who_maps
from snapvm.memory.pagingmode import (
    FIVE_LEVEL,
    FOUR_LEVEL,
    PAE,
    PAE_UNDER_XEN,
    PTE_LARGE,
    PTE_NX,
    PTE_PRESENT,
    PTE_USER,
    PTE_WRITABLE,
    TWO_LEVEL,
    PagingMode,
)
from tests.unit.memory.naive_walker import ABSENT, FAULT, UNREAD, Page, look_up

MODES = [TWO_LEVEL, PAE, FOUR_LEVEL, FIVE_LEVEL]
RW = PTE_PRESENT | PTE_WRITABLE
WORDS = {
    Why.ABSENT: ABSENT,
    Why.RESERVED: FAULT,
    Why.UNREAD: UNREAD,
}


@dataclass
class Tables:
    """Frames of tables, written entry by entry."""

    mode: PagingMode
    frames: dict[int, bytearray]

    def put(self, frame: int, index: int, entry: int, *, offset: int = 0) -> None:
        """Write one entry, making its frame when it is not there."""
        size = self.mode.entry_bytes
        data = self.frames.setdefault(frame, bytearray(4096))
        at = offset + index * size
        data[at : at + size] = entry.to_bytes(size, "little")

    def read(self, frame: int) -> bytes | None:
        """Give a frame as the walker wants it."""
        data = self.frames.get(frame)
        return None if data is None else bytes(data)

    @property
    def memory(self) -> dict[int, bytes]:
        """The same frames for the naive walker."""
        return {frame: bytes(data) for frame, data in self.frames.items()}


@dataclass
class Case:
    """Some tables, and addresses that reach their entries."""

    tables: Tables
    cr3: int
    addresses: list[int]


def _entries(mode: PagingMode) -> st.SearchStrategy[int]:
    """Entries that lead somewhere mostly: among the tables, to large pages, or astray."""
    low = st.sampled_from([RW, RW | PTE_USER, PTE_PRESENT, 0, PTE_WRITABLE, 0x1E7, 0x63])
    low |= st.integers(0, 0xFFF)
    frame = st.integers(0, 6) | st.integers(0, (1 << 20) - 1)
    large = st.integers(0, 1023).map(lambda number: number << 9 | number >> 7 << 1)
    high = st.just(0)
    if mode.entry_bytes == 8:
        high = st.sampled_from([0, 0, 0, PTE_NX]) | st.integers(0, 0x7FF).map(lambda n: n << 52)
        frame |= st.integers(0, (1 << 40) - 1)

    def build(low: int, frame: int, high: int) -> int:
        return (low | frame << 12 | high) & (1 << 8 * mode.entry_bytes) - 1

    return st.builds(build, low, frame, high) | st.builds(
        build, low.map(lambda bits: bits | PTE_LARGE), large, high
    )


@st.composite
def cases(draw: st.DrawFn, mode: PagingMode) -> Case:
    """Up to five tables of up to three entries; any may be reached on any level, in circles too."""
    tables = Tables(mode=mode, frames={})
    indexes = [level.entries - 1 for level in mode.levels]
    used = [0, 1]
    offset = draw(st.sampled_from([0, 32, 4064])) if mode is PAE else 0
    for frame in range(draw(st.integers(1, 5))):
        for _ in range(draw(st.integers(1, 3))):
            index = draw(st.sampled_from([0, 1, 2, 3, 255, 256, 511, 1023])) & min(
                max(indexes), 4096 // mode.entry_bytes - 1
            )
            used.append(index)
            at = offset if frame == 0 and index < 4 else 0
            tables.put(frame, index, draw(_entries(mode)), offset=at)
    addresses = []
    for _ in range(8):
        va = draw(st.integers(0, 0xFFF))
        for level in mode.levels:
            va |= (draw(st.sampled_from(used)) & level.entries - 1) << level.shift
        addresses.append(mode.canonical(va))
    return Case(tables=tables, cr3=offset | draw(st.sampled_from([0, 0x18])), addresses=addresses)


def _physical(page: Mapping, va: int) -> Page:
    return Page(
        physical=page.frame * 4096 + va - page.va,
        page_bytes=page.page_bytes,
        writable=page.writable,
        user=page.user,
        executable=page.executable,
    )


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_agrees_with_the_naive_walker(mode: PagingMode) -> None:
    @settings(max_examples=15)
    @given(cases(mode))
    def run(case: Case) -> None:
        for va in case.addresses:
            expected = look_up(mode.name, case.tables.memory, case.cr3, va)
            found = translate(mode, case.cr3, va, case.tables.read)
            assert found.va <= va < found.va + found.span_bytes
            if isinstance(found, Mapping):
                assert _physical(found, va) == expected
            else:
                assert WORDS[found.why] == expected

    run()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_walk_covers_every_address_once_and_agrees_with_translate(mode: PagingMode) -> None:
    @settings(max_examples=12)
    @given(cases(mode))
    def run(case: Case) -> None:
        parts = list(walk(mode, case.cr3, case.tables.read))
        at = 0
        for part in parts:
            if at == 1 << mode.va_bits - 1 and mode.is_signed:
                at = mode.canonical(at)
            assert part.va == at
            at += part.span_bytes
        assert at == 1 << (64 if mode.is_signed else mode.va_bits)
        for va in case.addresses:
            (around,) = (part for part in parts if part.va <= va < part.va + part.span_bytes)
            single = translate(mode, case.cr3, va, case.tables.read)
            assert type(single) is type(around)
            if isinstance(single, Mapping) and isinstance(around, Mapping):
                assert _physical(single, va) == _physical(around, va)

    run()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_who_maps_finds_what_a_full_walk_finds(mode: PagingMode) -> None:
    @settings(max_examples=12)
    @given(cases(mode), st.integers(0, 7))
    def run(case: Case, frame: int) -> None:
        expected = []
        for run_ in mappings(mode, case.cr3, case.tables.read):
            frames = run_.page_bytes // 4096
            for page in range(run_.span_bytes // run_.page_bytes):
                if run_.frame + page * frames <= frame < run_.frame + (page + 1) * frames:
                    expected.append(run_.va + page * run_.page_bytes)
                if page > 4 * 512:
                    break  # runs of this many pages do not come up below frame 8
        found = list(who_maps(mode, case.cr3, frame, case.tables.read))
        assert [page.va for page in found] == expected
        assert all(page.span_bytes == page.page_bytes for page in found)
        assert all(translate(mode, case.cr3, p.va, case.tables.read) == p for p in found)

    run()


def test_neighbours_with_the_same_rights_are_one_run_across_tables() -> None:
    tables = Tables(mode=FOUR_LEVEL, frames={})
    tables.put(1, 0, 2 << 12 | RW)
    tables.put(2, 0, 3 << 12 | RW)
    for table in range(2):
        tables.put(3, table, 4 + table << 12 | RW)
        for index in range(512):
            accessed = 0x60 if index % 3 else 0
            tables.put(4 + table, index, 1000 + 512 * table + index << 12 | RW | accessed)
    (run,) = mappings(FOUR_LEVEL, 1 << 12, tables.read)
    assert (run.va, run.span_bytes, run.frame, run.writable) == (0, 4 << 20, 1000, True)
    assert (run.table_frame, run.index) == (4, 0)


def test_a_run_ends_where_frames_jump_or_rights_change() -> None:
    tables = Tables(mode=TWO_LEVEL, frames={})
    tables.put(1, 0, 2 << 12 | RW)
    leaves = [(10, RW), (11, RW), (13, RW), (14, PTE_PRESENT), (15, PTE_PRESENT), (15, RW)]
    for index, (frame, flags) in enumerate(leaves):
        tables.put(2, index, frame << 12 | flags)
    runs = mappings(TWO_LEVEL, 4096, tables.read)
    assert [(r.va >> 12, r.span_bytes >> 12, r.frame, r.writable) for r in runs] == [
        (0, 2, 10, True),
        (2, 1, 13, True),
        (3, 2, 14, False),
        (5, 1, 15, True),
    ]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_each_single_bit_of_each_entry_means_what_the_manual_says(mode: PagingMode) -> None:
    path = [(1, 1), (2, 2), (3, 3), (4, 2), (5, 1)][: len(mode.levels)]
    va = 0
    for level, (_, index) in zip(mode.levels, path, strict=True):
        va |= index << level.shift
    for depth, large in [(d, large) for d in range(len(path)) for large in (0, PTE_LARGE)]:
        for bit in range(1, 8 * mode.entry_bytes):
            tables = Tables(mode=mode, frames={})
            for frame, index in path:
                tables.put(frame, index, frame + 1 << 12 | RW | PTE_USER)
            flags = PTE_PRESENT if mode is PAE and depth == 0 else RW
            frame, index = path[depth]
            base = frame + 1 if not large else 1 << 18
            tables.put(frame, index, (base << 12 | flags | large) ^ 1 << bit)
            found = translate(mode, 4096, va, tables.read)
            expected = look_up(mode.name, tables.memory, 4096, va)
            if isinstance(found, Mapping):
                assert _physical(found, va) == expected
            else:
                assert WORDS[found.why] == expected


def test_a_read_only_entry_above_makes_all_below_read_only() -> None:
    tables = Tables(mode=FOUR_LEVEL, frames={})
    tables.put(1, 511, 2 << 12 | RW | PTE_USER)
    tables.put(2, 511, 3 << 12 | PTE_PRESENT | PTE_NX)
    tables.put(3, 1, 0x200 << 12 | RW | PTE_USER | PTE_LARGE)
    page = translate(FOUR_LEVEL, 1 << 12, 0xFFFFFFFFC0212345, tables.read)
    assert isinstance(page, Mapping)
    assert (page.va, page.page_bytes, page.frame) == (0xFFFFFFFFC0200000, 2 << 20, 0x200)
    assert (page.writable, page.user, page.executable) == (False, False, False)


def test_holes_are_as_large_as_the_entry_that_makes_them() -> None:
    tables = Tables(mode=FIVE_LEVEL, frames={})
    tables.put(1, 0, 2 << 12 | RW)
    tables.put(2, 3, 9 << 12 | RW)
    assert translate(FIVE_LEVEL, 4096, 1 << 50, tables.read) == Hole(
        va=1 << 50, span_bytes=1 << 48, why=Why.ABSENT, level="PML5"
    )
    unread = translate(FIVE_LEVEL, 4096, 3 << 39 | 5, tables.read)
    assert unread == Hole(va=3 << 39, span_bytes=1 << 39, why=Why.UNREAD, level="PDPT")
    gap = translate(FIVE_LEVEL, 4096, 1 << 56, tables.read)
    assert gap == Hole(va=1 << 56, span_bytes=(1 << 64) - (1 << 57), why=Why.NON_CANONICAL)
    above = translate(TWO_LEVEL, 4096, 1 << 32, tables.read)
    assert isinstance(above, Hole)
    assert above.why is Why.NON_CANONICAL


def test_a_root_without_data_is_two_unread_halves() -> None:
    low, high = walk(FOUR_LEVEL, 4096, lambda _: None)
    assert isinstance(low, Hole)
    assert isinstance(high, Hole)
    assert (low.why, low.va, high.va) == (Why.UNREAD, 0, 0xFFFF800000000000)
    assert translate(FOUR_LEVEL, 4096, (1 << 64) - 1, lambda _: None) == high


def test_pse36_leads_above_four_gigabytes() -> None:
    tables = Tables(mode=TWO_LEVEL, frames={})
    tables.put(1, 5, 0x00C00000 | 0xAB << 13 | PTE_LARGE | RW)
    page = translate(TWO_LEVEL, 4096, 5 << 22 | 0x1234, tables.read)
    assert isinstance(page, Mapping)
    assert page.frame << 12 == 0xAB << 32 | 0x00C00000


def test_pae_root_entries_under_xen_may_carry_what_the_processor_refuses() -> None:
    tables = Tables(mode=PAE, frames={})
    tables.put(1, 0, 2 << 12 | 0x27)
    tables.put(2, 0, 0x400 << 12 | RW | PTE_LARGE)
    alone = translate(PAE, 4096, 0, tables.read)
    assert isinstance(alone, Hole)
    assert alone.why is Why.RESERVED
    under_xen = translate(PAE_UNDER_XEN, 4096, 0, tables.read)
    assert isinstance(under_xen, Mapping)
    assert under_xen.frame == 0x400


def test_tables_hung_below_themselves_are_walked_lazily() -> None:
    frames = {1: np.full(512, 1 << 12 | RW, "<u8").tobytes()}
    parts = islice(walk(FOUR_LEVEL, 4096, frames.get), 1000)
    assert len(list(parts)) == 1000  # of 2**36
    pages = islice(who_maps(FOUR_LEVEL, 4096, 1, frames.get), 1000)
    assert [page.va for page in pages] == list(range(0, 1000 * 4096, 4096))
