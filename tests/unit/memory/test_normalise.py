"""Canonicalising: what is owned gets its PFN, what is foreign goes whole, nothing else changes."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm.memory.normalise import (
    ENTRIES,
    P2M_FOREIGN,
    P2M_IDENTITY,
    XEN_SLOTS,
    ForeignKind,
    FrameMap,
    Normaliser,
    owned,
)
from snapvm.memory.pagingmode import PTE_LARGE, PTE_NX, PTE_PRESENT, PTE_WRITABLE, Words
from snapvm.refusals import BadImage
from tests.unit.memory.xen_builders import FRAME, uncanonicalise

HOST_FRAMES = 5000
GUEST_FRAMES = 1200
NOWHERE = (1 << 64) - 1
SHARED_INFO, NEIGHBOURS, IDENTITY = 4990, 4000, 4500


@dataclass
class Host:
    """A machine with one domain on it, and the frames at which another begins."""

    p2m: Words
    m2p: Words

    @property
    def frames(self) -> FrameMap:
        """The domain's frame map."""
        return FrameMap.of(
            self.p2m,
            owned(self.p2m, self.m2p, max_mfn=HOST_FRAMES),
            max_mfn=HOST_FRAMES,
            shared_info_mfn=SHARED_INFO,
        )


def host(seed: int = 1) -> Host:
    """Scatter a domain over machine memory below frame 4000; p2m ends with marked entries."""
    random = np.random.default_rng(seed)
    p2m = np.full(GUEST_FRAMES + 3, NOWHERE, np.uint64)
    p2m[:GUEST_FRAMES] = random.permutation(NEIGHBOURS)[:GUEST_FRAMES]
    p2m[random.random(len(p2m)) < 0.1] = NOWHERE
    p2m[GUEST_FRAMES] = P2M_FOREIGN | NEIGHBOURS
    p2m[GUEST_FRAMES + 1] = P2M_IDENTITY | IDENTITY
    m2p = np.full(HOST_FRAMES, NOWHERE, np.uint64)
    pfns = np.flatnonzero(p2m < HOST_FRAMES)
    m2p[p2m[pfns]] = pfns
    m2p[NEIGHBOURS:IDENTITY] = np.arange(IDENTITY - NEIGHBOURS)  # the neighbour's own PFNs
    return Host(p2m=p2m, m2p=m2p)


def normalise(
    tables: Words, levels: list[int], machine: Host | None = None
) -> tuple[Words, npt.NDArray[np.void]]:
    """Canonicalise a copy; the tables are in frames 100 and up."""
    out = tables.copy()
    log = Normaliser((machine or host()).frames, "memory of web1").canonicalise(
        out,
        np.array(levels, np.uint8),
        np.arange(100, 100 + len(tables), dtype=np.uint64),
    )
    return out, log


def owned_entries(machine: Host, count: int, seed: int = 2) -> Words:
    """Present entries with owned frames and all sorts of flags."""
    random = np.random.default_rng(seed)
    mfns = machine.p2m[machine.p2m < HOST_FRAMES]
    flags = random.integers(0, 1 << 12, count).astype(np.uint64) & np.uint64(~PTE_LARGE & 0xFFF)
    flags |= random.integers(0, 1 << 12, count).astype(np.uint64) << np.uint64(52)
    return random.choice(mfns, count) << np.uint64(12) | flags | np.uint64(PTE_PRESENT)


def test_owned_frames_come_and_go_for_every_level_and_batch_size() -> None:
    machine = host()
    for count in (1, 31, 32, 33, 70):
        tables = owned_entries(machine, count * ENTRIES).reshape(count, ENTRIES)
        levels = [1 + number % 4 for number in range(count)]
        tables[np.array(levels) == 4, XEN_SLOTS] = 0
        canonical, log = normalise(tables, levels, machine)
        assert len(log) == 0
        assert np.array_equal(uncanonicalise(canonical, machine.p2m), tables)
        assert not np.array_equal(canonical, tables)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2 * ENTRIES - 1),
            st.integers(0, (1 << 40) - 1) | st.integers(3990, 5010),
            st.integers(0, (1 << 12) - 1),
            st.booleans(),
        ),
        max_size=40,
    )
)
@settings(max_examples=40)
def test_exactly_the_foreign_entries_change_beyond_their_frame(
    written: list[tuple[int, int, int, bool]],
) -> None:
    machine = host()
    tables = owned_entries(machine, 2 * ENTRIES).reshape(2, ENTRIES)
    for place, mfn, flags, is_nx in written:
        tables[divmod(place, ENTRIES)] = mfn << 12 | flags | (PTE_NX if is_nx else 0)
    canonical, log = normalise(tables, [1, 1], machine)
    pfn_of = {int(mfn): pfn for pfn, mfn in enumerate(machine.p2m)}
    foreign = []
    for row in range(2):
        for index in range(ENTRIES):
            before, after = int(tables[row, index]), int(canonical[row, index])
            mfn = (before & FRAME) >> 12
            if not before & PTE_PRESENT:
                assert after == before
            elif mfn in pfn_of:
                assert after == before & ~FRAME | pfn_of[mfn] << 12
            else:
                assert after == 0
                foreign.append((100 + row, index, mfn, before & ~FRAME))
    assert [
        (int(e["table_pfn"]), int(e["index"]), int(e["mfn"]), int(e["flags"])) for e in log
    ] == foreign


def test_a_foreign_entry_is_named_for_what_it_is() -> None:
    tables = np.zeros((1, ENTRIES), np.uint64)
    expected = {
        10: (SHARED_INFO, ForeignKind.SHARED_INFO),
        12: (NEIGHBOURS, ForeignKind.OTHER_GRANT),
        13: (NEIGHBOURS + 1, ForeignKind.UNKNOWN),
        14: (IDENTITY, ForeignKind.MMIO),
        15: (0xFEE00, ForeignKind.MMIO),
    }
    for index, (mfn, _) in expected.items():
        tables[0, index] = mfn << 12 | PTE_NX | 0x67
    canonical, log = normalise(tables, [1])
    assert not canonical.any()
    found = {int(e["index"]): (int(e["mfn"]), ForeignKind(int(e["kind"]))) for e in log}
    assert found == expected
    assert set(log["flags"].tolist()) == {PTE_NX | 0x67}
    assert set(log["table_pfn"].tolist()) == {100}


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_foreign_frame_above_l1_is_an_error_with_its_place(level: int) -> None:
    tables = np.zeros((3, ENTRIES), np.uint64)
    tables[0, 9] = NEIGHBOURS << 12 | 0x67
    tables[2, 5] = NEIGHBOURS << 12 | 0x67
    with pytest.raises(BadImage) as raised:
        normalise(tables, [1, 1, level])
    assert raised.value.offset_bytes == 102 * 4096 + 5 * 8
    assert raised.value.why == (
        f"entry 5 of the L{level} table in frame 0x66 refers to machine frame 0xfa0, "
        "which the domain does not own"
    )
    assert raised.value.path == "memory of web1"


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_large_page_is_an_error_but_pat_in_l1_is_not(level: int) -> None:
    machine = host()
    tables = owned_entries(machine, ENTRIES).reshape(1, ENTRIES)
    tables[0, 300] |= np.uint64(PTE_LARGE)
    canonical, _ = normalise(tables, [1], machine)
    assert int(canonical[0, 300]) & PTE_LARGE
    with pytest.raises(BadImage, match=f"entry 300 of the L{level} table"):
        normalise(tables, [level], machine)
    tables[0, 300] &= ~np.uint64(PTE_PRESENT)
    normalise(tables, [level], machine)


def test_xens_own_slots_of_an_l4_are_emptied_whatever_they_hold() -> None:
    machine = host()
    tables = np.zeros((2, ENTRIES), np.uint64)
    tables[:, XEN_SLOTS] = NEIGHBOURS << 12 | PTE_LARGE | PTE_WRITABLE | PTE_PRESENT
    tables[:, 255] = tables[:, 272] = int(machine.p2m[machine.p2m < HOST_FRAMES][0]) << 12 | 1
    canonical, log = normalise(tables[:1], [4], machine)
    assert len(log) == 0
    assert np.flatnonzero(canonical).tolist() == [255, 272]
    _, log = normalise(tables, [4, 1], machine)
    assert log["index"].tolist() == list(range(256, 272))


def test_tables_that_cannot_be_rewritten_in_place_are_a_bug() -> None:
    for tables in (np.zeros((2, 1024), np.uint64)[:, ::2], np.zeros((2, 1024), np.uint64)):
        with pytest.raises(ValueError, match="in place"):
            Normaliser(host().frames, "web1").canonicalise(
                tables, np.ones(2, np.uint8), np.arange(2, dtype=np.uint64)
            )


def test_a_p2m_entry_xen_does_not_agree_to_owns_nothing() -> None:
    machine = host()
    pfn = int(np.flatnonzero(machine.p2m < HOST_FRAMES)[3])
    mfn = int(machine.p2m[pfn])
    machine.m2p[mfn] = pfn + 1
    tables = np.zeros((1, ENTRIES), np.uint64)
    tables[0, 0] = mfn << 12 | 1
    _, log = normalise(tables, [1], machine)
    assert log["mfn"].tolist() == [mfn]


def test_machine_frames_are_given_their_pfns_and_those_of_nobody_none() -> None:
    machine = host()
    its = np.flatnonzero(machine.p2m < HOST_FRAMES).astype(np.uint64)
    pfns, is_owned = machine.frames.pfns_of(machine.p2m[its])
    assert is_owned.all()
    assert np.array_equal(pfns, its)
    _, is_owned = machine.frames.pfns_of(np.array([SHARED_INFO, HOST_FRAMES, NOWHERE], np.uint64))
    assert not is_owned.any()


def test_the_frame_behind_the_last_one_of_the_host_is_nobodys() -> None:
    machine = host()
    machine.p2m[-1] = HOST_FRAMES
    _, is_owned = machine.frames.pfns_of(machine.p2m[-1:])
    kinds = machine.frames.classify(np.array([HOST_FRAMES - 1, HOST_FRAMES], np.uint64))
    assert not is_owned.any() and kinds.tolist() == [ForeignKind.UNKNOWN, ForeignKind.MMIO]


def test_a_host_with_far_more_memory_than_its_control_domain() -> None:
    """A table of all its frames was larger than the memory of dom0: "Unable to allocate"."""
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    kib = sum(int(facts[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this host promises no more memory than it has")
    max_mfn = (kib << 10) // 8 + (1 << 20)
    mfns = np.array([5, max_mfn - 1], np.uint64)
    frames = FrameMap.of(mfns, np.ones(2, np.bool_), max_mfn=max_mfn)
    pfns, is_owned = frames.pfns_of(np.array([max_mfn - 1, 5, 6, max_mfn + 7], np.uint64))
    assert (pfns[:2].tolist(), is_owned.tolist()) == ([1, 0], [True, True, False, False])


def test_a_large_guest_costs_little_more_than_the_map() -> None:
    """Arrays for all of it at once were 40 bytes a frame, in the window, of a host with none."""
    frames = 1 << 21
    p2m = np.arange(frames, dtype=np.uint64)[::-1].copy()
    m2p = p2m.copy()
    p2m[5] = 7 | P2M_FOREIGN
    tracemalloc.start()
    try:
        built = FrameMap.build(p2m, m2p, max_mfn=frames)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 3 * frames + (16 << 20)
    pfns, is_owned = built.pfns_of(p2m[-5:])
    assert pfns.tolist() == list(range(frames - 5, frames)) and is_owned.all()
    assert built.other_grant_mfns.tolist() == [7]
    assert np.flatnonzero(built.steps == 0).tolist() == [frames - 6, frames]
