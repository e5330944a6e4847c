"""The p2m as list and as tree, sparse and trimmed, against what was put there."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm.memory.p2m import P2m, P2mRoots, read_p2m
from snapvm.memory.pagingmode import Words
from snapvm.refusals import BadImage

HOLE = (1 << 64) - 1
HOST_FRAMES = 1 << 20
PLENTY = 1 << 40


@dataclass
class Machine:
    """Machine memory that tables are put into, frame after frame; it counts what is fetched."""

    frames: dict[int, list[int]] = field(default_factory=dict)
    fetched: Counter[int] = field(default_factory=Counter)
    flags: int = 0x67

    def put(self, entries: list[int]) -> int:
        """Store a frame and return its MFN."""
        mfn = 100 + 7 * len(self.frames)
        self.frames[mfn] = entries + [0] * (512 - len(entries))
        return mfn

    def fetch(self, mfns: Words) -> Words:
        """Give frames, as the reader wants them."""
        self.fetched.update(mfns.tolist())
        return np.array([self.frames[mfn] for mfn in mfns.tolist()], np.uint64)

    def leaves(self, values: list[int]) -> list[int]:
        """Store the entries; all frames that are one hole are the same frame, as Linux has it."""
        hole = self.put([HOLE] * 512)
        parts = [values[start : start + 512] for start in range(0, len(values), 512)]
        return [hole if set(part) == {HOLE} else self.put(part) for part in parts]

    def list_at(self, vaddr: int, leaves: list[int]) -> int:
        """Map the leaves at an address by four levels of tables and return the root."""
        first, mfns = vaddr >> 12 & (1 << 36) - 1, leaves
        made: dict[tuple[int, ...], int] = {}
        for _ in range(4):
            offset = first % 512
            slots = [0] * offset + [mfn << 12 | self.flags for mfn in mfns]
            slots += [0] * (-len(slots) % 512)
            tables = [tuple(slots[start : start + 512]) for start in range(0, len(slots), 512)]
            for table in tables:
                if table not in made:
                    made[table] = self.put(list(table))
            mfns, first = [made[table] for table in tables], first // 512
        (root,) = mfns
        return root

    def tree(self, leaves: list[int]) -> int:
        """Link the leaves by frame lists and return the list of lists."""
        made: dict[tuple[int, ...], int] = {}
        lists = []
        for start in range(0, len(leaves), 512):
            part = tuple(leaves[start : start + 512])
            if part not in made:
                made[part] = self.put(list(part))
            lists.append(made[part])
        return self.put(lists)


def roots(pfns: int, *, tree: int = 0, root: int = 0, vaddr: int = 0) -> P2mRoots:
    """Take the roots out of a shared_info page with these."""
    page = bytearray(4096)
    struct.pack_into("<QQQQQQ", page, 3088, pfns, tree, 0, root << 12, vaddr, 2)
    return P2mRoots.of(bytes(page))


def read(root: P2mRoots, machine: Machine, most_bytes: int = PLENTY) -> P2m:
    """Read the p2m that the roots lead to."""
    return read_p2m(root, machine.fetch, max_mfn=HOST_FRAMES, most_bytes=most_bytes, origin="web1")


@given(
    st.integers(1, 3000),
    st.integers(0, (1 << 30) - 1) | st.sampled_from([0, 510, 511, 262143]),
    st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 600)), max_size=4),
)
@settings(max_examples=30)
def test_list_and_tree_give_what_was_put_there(
    pfns: int, page: int, holes: list[tuple[int, int]]
) -> None:
    values = [5000 + 3 * pfn for pfn in range(pfns)]
    for start, length in holes:
        values[start : start + length] = [HOLE] * len(values[start : start + length])
    machine = Machine()
    leaves = machine.leaves(values)
    vaddr = 0xFFFFC90000000000 + (page << 12)
    linear = roots(pfns, root=machine.list_at(vaddr, leaves), vaddr=vaddr)
    tree = roots(pfns, tree=machine.tree(leaves))
    for root in (linear, tree):
        found = read(root, machine)
        assert found.end_pfn == pfns - 1
        assert found.entries.tolist() == values
        assert found.leaf_mfns.tolist() == leaves


@pytest.mark.parametrize("start", [0, 0x200 << 12, 0x3FE00 << 12])
def test_a_huge_table_is_fetched_sparsely_and_ends_before_its_holes(start: int) -> None:
    machine = Machine()
    pfns = 6 * 512 * 512  # the holes behind the first tables have one table in common
    leaves = machine.leaves([*range(1000, 1600), *[HOLE] * (pfns - 600)])
    vaddr = 0xFFFFC90000000000 + start
    linear = roots(pfns, root=machine.list_at(vaddr, leaves), vaddr=vaddr)
    tree = roots(pfns, tree=machine.tree(leaves))
    for root in (linear, tree):
        machine.fetched.clear()
        found = read(root, machine)
        assert found.end_pfn + 1 < pfns
        assert found.end_pfn + 1 == len(found.entries) == 512 * len(found.leaf_mfns)
        assert found.entries[:600].tolist() == list(range(1000, 1600))
        assert set(found.entries[600:].tolist()) <= {HOLE}
        assert sum(machine.fetched.values()) < 20


WRONG = {
    "no frames": (roots(0), "claims 0 frames", 3088),
    "too many": (roots(1 << 60), "claims", 3088),
    "tree root": (roots(5, tree=HOST_FRAMES), "root 0", 3096),
    "no root at all": (roots(5), "does not tell where", 3096),
    "tree too small": (roots((1 << 27) + 1, tree=100), "no room", 3088),
    "list root": (roots(5, root=HOST_FRAMES, vaddr=0xFFFFC90000000000), "root 0", 3112),
    "in Xen's part": (roots(5, root=100, vaddr=0xFFFF87FFFFFFF000), "cannot be at", 3120),
    "not canonical": (roots(5, root=100, vaddr=1 << 47), "cannot be at", 3120),
    "over the top": (roots(5000, root=100, vaddr=0xFFFFFFFFFFFFF000), "cannot be at", 3120),
    "into the gap": (roots(5000, root=100, vaddr=(1 << 47) - 4096), "cannot be at", 3120),
}


@pytest.mark.parametrize("name", WRONG)
def test_roots_that_lead_astray_are_named(name: str) -> None:
    root, words, offset = WRONG[name]
    with pytest.raises(BadImage, match=words) as raised:
        read(root, Machine())
    assert raised.value.offset_bytes == offset


def test_an_entry_that_leads_nowhere_is_named() -> None:
    machine = Machine()
    vaddr = 0xFFFFC90000000000
    root = machine.list_at(vaddr, [*machine.leaves(list(range(5000, 6000))), 0])
    with pytest.raises(BadImage, match="L1 entry 2 of the p2m is machine frame 0x0"):
        read_p2m(
            roots(1025, root=root, vaddr=vaddr),
            machine.fetch,
            max_mfn=HOST_FRAMES,
            most_bytes=PLENTY,
            origin="web1",
        )


@pytest.mark.parametrize("kind", ["list", "tree"])
def test_a_table_of_nothing_but_one_frame_takes_no_endless_memory(kind: str) -> None:
    """A guest of four frames could have 2 GiB of the host's, several times over."""
    machine = Machine()
    pfns = 1 << 26
    one = machine.put([HOLE] * 512)
    # Two tables in turn: what is the same to the end would be cut off.
    tables = [machine.put([one << 12 | 0x67] * 511 + [one << 12 | flags]) for flags in (1, 3)]
    if kind == "list":
        found = [table << 12 | 0x67 for table in tables] * 256
        root = machine.put([machine.put([machine.put(found) << 12 | 1]) << 12 | 1])
        roots_ = roots(pfns, root=root, vaddr=0)
    else:
        lists = [machine.put([one] * 512) for _ in range(2)] * 256
        roots_ = roots(pfns, tree=machine.put(lists))
    with pytest.raises(BadImage, match="its p2m takes 512 MiB, and this host can spare 64 MiB"):
        read(roots_, machine, most_bytes=64 << 20)
