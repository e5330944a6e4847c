"""The engine on guests that do anything at any time: the image is what they were in the window.

What it must hold is told by the machine itself, entry by entry and in plain Python: no way of the
engine is compared with another.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapvm import durable, xxh64
from snapvm.memory import framestore, precopy
from snapvm.memory.xenframes import survey
from snapvm.memory.xenimage import ImageWriter, open_image
from snapvm.memory.xenrecord import PageBatch
from snapvm.model import Silent
from snapvm.xenguest import Mapping
from tests.fakes.xenmachine import FOREIGN_MFN, MAX_MFN, Machine
from tests.unit.memory.guestcapture import LITTLE, PLENTY, SOME, begun
from tests.unit.memory.xen_builders import L1, LAST_PFN, MFN_BASE, NOWHERE, P2M, XTAB

RESTLESS = range(32, LAST_PFN + 1)
"""PFNs that may become anything: not a vCPU's frames, the p2m's, or tables of a higher level."""
SPARE_LEAVES = ([P2M, 16, 17], [P2M + 1, 18, 19])
"""Where the two pages of its p2m may be."""
BUSY = (0.02, 0.1, 0.5)
"""How often a guest does something, of the times that it may."""
NO_DATA = {0xD, 0xE, XTAB}
Image = dict[int, tuple[int, bytes]]
"""Type and page of each PFN that has one."""


class Restless(Machine):
    """A guest that does something whenever the engine does, until it ``is_still``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.chance = random.Random(seed)
        self.is_still = True
        self.busy = BUSY[seed % len(BUSY)]
        self.unused = list(range(0x1800, MAX_MFN))
        self.former: list[bytes] = [bytes(4096)]
        self.soon: list[Callable[[], None]] = []
        """What is done the next time: a thing taken back."""

    def act(self) -> None:
        """Do a few things, or nothing."""
        if self.is_still or self.chance.random() > self.busy:
            return
        soon, self.soon = self.soon, []
        for deed in soon:
            deed()
        for _ in range(3):
            self.chance.choice(DEEDS)(self, self.chance.choice(RESTLESS))

    def a_frame(self) -> int:
        """Return a machine frame that is nobody's, often one that was the guest's own."""
        at = self.chance.choice([0, -1])
        return self.unused.pop(at)

    def a_table(self) -> bytes:
        """Return a table with entries of its own frames, of those of others, and of none."""
        words = np.zeros(512, "<u8")
        for index in self.chance.sample(range(512), 20):
            mfns = [self.entry(self.chance.choice(RESTLESS)), FOREIGN_MFN, MFN_BASE + 300]
            words[index] = (self.chance.choice(mfns) & 0xFFFF) << 12 | self.chance.choice([1, 0x66])
        return words.tobytes()

    def a_page(self) -> bytes:
        """Return a page: new, empty, or one that has been somewhere."""
        if self.chance.random() < 0.5:
            return self.chance.choice(self.former)
        self.former.append(self.chance.randbytes(8) * 512)
        return self.former[-1]

    def map(self, mfns: memoryview) -> Mapping:
        self.act()
        return super().map(mfns)

    def types(self, mfns: memoryview) -> memoryview:
        self.act()
        return super().types(mfns)


def write(guest: Restless, pfn: int) -> None:
    mfn = guest.entry(pfn)
    if mfn < MAX_MFN:
        is_table = 1 <= guest.type_of[mfn] & 7 <= 4
        guest.write(mfn, guest.a_table() if is_table else guest.a_page())


def become(guest: Restless, pfn: int) -> None:
    mfn = guest.entry(pfn)
    if mfn < MAX_MFN:
        guest.type_of[mfn] = guest.chance.choice([1, 9, 0, 0, 0xD])
        write(guest, pfn)


def map_elsewhere(guest: Restless, pfn: int) -> None:
    """Change one of the tables that the guest has always had."""
    mfn = MFN_BASE + L1
    words = np.frombuffer(guest.pages[mfn], "<u8").copy()
    words[pfn % 512] = (guest.entry(pfn) & 0xFFFF) << 12 | 0x67
    guest.write(mfn, words.tobytes())


def balloon_out(guest: Restless, pfn: int) -> None:
    mfn = guest.entry(pfn)
    if mfn < MAX_MFN:
        guest.take_away(pfn, guest.chance.choice([NOWHERE, FOREIGN_MFN | 1 << 63, 7 | 1 << 62]))
        guest.unused.append(mfn)


def balloon_in(guest: Restless, pfn: int) -> None:
    if guest.entry(pfn) >= MAX_MFN:
        guest.move(pfn, guest.a_frame(), guest.a_page())


def move(guest: Restless, pfn: int) -> None:
    balloon_out(guest, pfn)
    balloon_in(guest, pfn)


def swap(guest: Restless, pfn: int) -> None:
    other = guest.chance.choice(RESTLESS)
    balloon_out(guest, pfn)
    balloon_out(guest, other)
    balloon_in(guest, pfn)
    balloon_in(guest, other)


def move_p2m(guest: Restless, pfn: int) -> None:
    guest.move_leaf(pfn % 2, guest.chance.choice(SPARE_LEAVES[pfn % 2]))


def write_for_a_moment(guest: Restless, pfn: int) -> None:
    mfn = guest.entry(pfn)
    if mfn < MAX_MFN and not guest.type_of[mfn]:
        page = guest.pages[mfn]
        guest.write(mfn, guest.chance.randbytes(8) * 512)

        def put_back() -> None:
            if guest.entry(pfn) == mfn:
                guest.write(mfn, page)

        guest.soon.append(put_back)


def leave_for_a_moment(guest: Restless, pfn: int) -> None:
    mfn = guest.entry(pfn)
    if mfn < MAX_MFN:
        guest.take_away(pfn)
        page = guest.a_page()

        def come_back() -> None:
            if guest.entry(pfn) >= MAX_MFN:
                guest.move(pfn, mfn, page)

        guest.soon.append(come_back)


DEEDS: list[Callable[[Restless, int], None]] = [
    *[write] * 6,
    become,
    map_elsewhere,
    balloon_out,
    balloon_in,
    move,
    swap,
    move_p2m,
    *[write_for_a_moment] * 4,
    leave_for_a_moment,
]


def as_it_stands(machine: Machine) -> Image:
    """Say what an image of the machine of now must hold."""
    p2m = [machine.entry(pfn) for pfn in range(LAST_PFN + 1)]
    pfn_of = {mfn: pfn for pfn, mfn in enumerate(p2m) if mfn < MAX_MFN and machine.m2p[mfn] == pfn}
    found = {}
    for pfn, mfn in enumerate(p2m):
        type_ = machine.type_of.get(mfn, XTAB)
        if mfn < MAX_MFN and type_ not in NO_DATA:
            found[pfn] = (type_, _canonical(machine.pages[mfn], type_ & 7, pfn_of))
    return found


def _canonical(page: bytes, level: int, pfn_of: dict[int, int]) -> bytes:
    if not level:
        return page
    words = list(struct.unpack("<512Q", page))
    for index, word in enumerate(words):
        mfn = word >> 12 & (1 << 40) - 1
        if level == 4 and 256 <= index < 272:
            words[index] = 0
        elif word & 1:
            words[index] = word + (pfn_of[mfn] - mfn << 12) if mfn in pfn_of else 0
    return struct.pack("<512Q", *words)


def read(path: Path) -> tuple[Image, list[int]]:
    """Return what an image holds, and where it says that the p2m is."""
    found = {}
    with survey(path) as image:
        types = image.index.types(np.arange(LAST_PFN + 1, dtype=np.uint64)).tolist()
        for pfn, type_ in enumerate(types):
            page = image.read_frame(pfn)
            assert (page is None) == (type_ in NO_DATA)
            if page is not None:
                found[pfn] = (type_, page)
        assert image.p2m is not None
        return found, image.p2m.pfns.tolist()


def populated_by(path: Path) -> set[int]:
    """Return the PFNs that a restore gives a frame: all that ever come with a page."""
    with open_image(path) as image:
        batches = [batch for batch in image.records() if isinstance(batch, PageBatch)]
    return {pfn for batch in batches for pfn in batch.pfns[batch.has_data].tolist()}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 32)
    monkeypatch.setattr(framestore, "_MAX_THREADS", 1)  # a seed is to say all
    monkeypatch.setattr(precopy, "LITTLE_BYTES", 0)


def acting_at(monkeypatch: pytest.MonkeyPatch, machine: Restless) -> None:
    """Have the guest do something between what is noted of a page and its writing, and after."""

    def around(work: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any) -> Any:
            machine.act()
            done = work(*arguments)
            machine.act()
            return done

        return acting

    for name in ("digest", "digests"):
        monkeypatch.setattr(xxh64, name, around(getattr(xxh64, name)))
    monkeypatch.setattr(durable, "rewrite", around(durable.rewrite))
    monkeypatch.setattr(durable, "let_go", around(durable.let_go))
    sink = ImageWriter.pages
    monkeypatch.setattr(ImageWriter, "pages", around(sink))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("budget_bytes", "domain_ends"),
    [
        pytest.param(PLENTY, False, id="copies"),
        pytest.param(SOME, False, id="digests"),
        pytest.param(LITTLE, False, id="spilled"),
        pytest.param(0, False, id="one pass"),
        pytest.param(PLENTY, True, id="ends"),
    ],
)
def test_the_image_is_what_the_guest_was_when_it_stood_still(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget_bytes: int,
    domain_ends: bool,
    seed: int,
) -> None:
    machine = Restless(seed)
    acting_at(monkeypatch, machine)
    if budget_bytes == LITTLE:
        budget_bytes *= machine.chance.randint(1, 8)
    image = begun(tmp_path / "i", machine, budget_bytes, domain_ends=domain_ends)
    try:
        machine.is_still = False
        image.prepare(machine.shared_info, Silent())
        machine.act()
        image.rehearse(machine.shared_info())
        machine.act()
        machine.is_still = True
        stood = as_it_stands(machine)
        p2m_pfns = [int(machine.m2p[mfn]) for mfn in machine.leaves]
        owned = {pfn for pfn in range(LAST_PFN + 1) if machine.owns(pfn)}
        image.catch(machine.standing())
        machine.is_still = domain_ends
        machine.act()
        facts = image.write(Silent())
    finally:
        image.close()
    assert not machine.open_mappings
    found, found_p2m = read(tmp_path / "i")
    assert found.keys() == stood.keys()
    assert [pfn for pfn in found if found[pfn] != stood[pfn]] == []
    assert found_p2m == p2m_pfns
    assert facts.frames >= len(stood)
    assert facts.restored_frames == len(populated_by(tmp_path / "i") | owned)
