"""The engine on a guest whose memory changes its shape while it is captured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snapvm.memory.verify import verify_image
from snapvm.memory.xenframes import survey
from snapvm.model import Silent
from snapvm.refusals import BadImage
from tests.fakes.xenmachine import Machine
from tests.unit.memory.guestcapture import (
    LITTLE,
    PLENTY,
    SOME,
    TABLES,
    begun,
    expected,
    frames_of,
    make,
)
from tests.unit.memory.xen_builders import MFN_BASE, OWNED, P2M


def test_a_page_that_moved_is_copied_from_where_it_is(tmp_path: Path) -> None:
    machine = Machine()
    facts, _ = make(tmp_path / "i", machine, meanwhile=lambda m: m.move(300, 0x1800))
    frames = frames_of(tmp_path / "i")
    assert frames[300] == b"moved!!!" * 512
    assert len(frames) == OWNED
    assert facts.changed_frames >= 1


@pytest.mark.parametrize(("budget_bytes", "is_kept"), [(PLENTY, True), (SOME, True), (0, False)])
def test_what_a_guest_gave_back_is_counted_once(
    tmp_path: Path, budget_bytes: int, is_kept: bool
) -> None:
    """Xen counts it still, for it is mapped; a restored guest was told to take it once more."""

    def meanwhile(machine: Machine) -> None:
        for pfn in range(200, 300):
            machine.take_away(pfn)

    facts, _ = make(tmp_path / "i", Machine(), meanwhile=meanwhile, budget_bytes=budget_bytes)
    assert facts.restored_frames == OWNED - (0 if is_kept else 100)
    facts, _ = make(
        tmp_path / "j", Machine(), meanwhile=lambda m: m.move(595, 0x1800), budget_bytes=SOME
    )
    assert facts.restored_frames == OWNED + 1


@pytest.mark.parametrize(("looks", "way"), [(3, "precopy while"), (1000, "one pass into the file")])
@pytest.mark.parametrize("kind", ["marked", "unreadable"])
def test_a_guest_that_is_just_changing_its_p2m_is_looked_at_again(
    tmp_path: Path, looks: int, way: str, kind: str
) -> None:
    """Caught in the midst of that once, it stood still until all of it was written."""
    machine, asked = Machine(), 0

    def shared_info() -> bytes:
        nonlocal asked
        asked += 1
        if asked >= looks:
            return machine.shared_info()
        is_marked = kind == "marked"
        return machine.shared_info(generation=1) if is_marked else machine.shared_info(1 << 50)

    image = begun(tmp_path / "i", machine)
    method = image.prepare(shared_info, Silent())
    assert way in method
    assert ("table of frames" in method) == (looks == 1000)
    image.catch(machine.standing())
    facts = image.write(Silent())
    image.close()
    assert (facts.changed_frames == TABLES) == (looks == 3)
    assert frames_of(tmp_path / "i") == expected(machine)


def test_a_page_that_cannot_be_mapped_while_it_runs_is_had_later(tmp_path: Path) -> None:
    machine = Machine(unmappable={MFN_BASE + 77})
    make(tmp_path / "i", machine, meanwhile=lambda m: m.unmappable.clear())
    assert frames_of(tmp_path / "i") == expected(machine)


@pytest.mark.parametrize("budget_bytes", [PLENTY, SOME, 0])
def test_a_page_of_its_own_that_cannot_be_mapped_is_not_left_out(
    tmp_path: Path, budget_bytes: int
) -> None:
    """The image would have been called whole."""
    machine = Machine(unmappable={MFN_BASE + 77})
    with pytest.raises(BadImage, match=r"0x104d .* cannot be mapped"):
        make(tmp_path / "i", machine, budget_bytes=budget_bytes)
    machine.type_of[MFN_BASE + 77] = 0xF
    make(tmp_path / "i", machine, budget_bytes=budget_bytes)
    assert 77 not in frames_of(tmp_path / "i")


@pytest.mark.parametrize("budget_bytes", [PLENTY, LITTLE])
def test_a_page_of_memory_that_broke_is_not_there_as_it_was_before(
    tmp_path: Path, budget_bytes: int
) -> None:
    def broken(machine: Machine) -> None:
        machine.type_of[MFN_BASE + 100] = 0xD

    make(tmp_path / "i", Machine(), meanwhile=broken, budget_bytes=budget_bytes)
    with survey(tmp_path / "i") as image:
        assert image.index.types(np.array([100], np.uint64)).tolist() == [0xD]
        assert image.read_frame(100) is None


@pytest.mark.parametrize("budget_bytes", [PLENTY, LITTLE])
def test_a_guest_whose_frames_became_fewer_is_to_be_taken_again(
    tmp_path: Path, budget_bytes: int
) -> None:
    """It ended as a bug of snapvm: the image has pages of frames that there are no more."""
    machine = Machine()
    image = begun(tmp_path / "i", machine, budget_bytes)
    try:
        image.prepare(machine.shared_info, Silent())
        with pytest.raises(BadImage, match="changed its size"):
            image.catch(replace(machine.standing(), shared_info=machine.shared_info(580)))
            image.write(Silent())
    finally:
        image.close()


@pytest.mark.parametrize("budget_bytes", [PLENTY, SOME, LITTLE, 0])
def test_a_guest_that_is_given_memory_while_it_is_copied_is_whole(
    tmp_path: Path, budget_bytes: int
) -> None:
    """Its p2m got longer, and all that had been copied was thrown away after the window."""
    machine = Machine()

    def meanwhile(machine: Machine) -> None:
        machine.grow(3 * 512 + 100, leaf_pfns=[16, 18])
        for pfn in (1100, 1550):
            machine.move(pfn, 0x1200 + pfn)

    make(tmp_path / "i", machine, meanwhile=meanwhile, budget_bytes=budget_bytes)
    given = dict.fromkeys((1100, 1550), b"moved!!!" * 512)
    table = {pfn: machine.pages[MFN_BASE + pfn] for pfn in (16, 18)}
    assert frames_of(tmp_path / "i") == expected(machine) | given | table
    report = verify_image(tmp_path / "i")
    assert report.is_sound, report.findings
    with survey(tmp_path / "i") as image:
        assert image.p2m is not None
        assert image.p2m.end_pfn == 3 * 512 + 99
        assert image.p2m.pfns.tolist() == [P2M, P2M + 1, 16, 18]


def test_one_that_is_given_more_than_there_is_room_for_is_to_be_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapvm.memory.imagehead._P2M_ROOM", 4)
    make(tmp_path / "i", Machine(), meanwhile=lambda m: m.grow(1100, leaf_pfns=[16]))
    with pytest.raises(BadImage, match="changed its size"):
        make(tmp_path / "j", Machine(), meanwhile=lambda m: m.grow(1600, leaf_pfns=[16, 18]))


@pytest.mark.parametrize("budget_bytes", [PLENTY, SOME, 0])
@pytest.mark.parametrize("domain_ends", [False, True])
def test_a_guest_that_claims_one_frame_over_and_over_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget_bytes: int, domain_ends: bool
) -> None:
    """One of 64 MiB had an image of a TiB written, for hours, and could stand still meanwhile."""
    monkeypatch.setattr("snapvm.memory.framestore._CLAIMED_MORE", 0)
    machine = Machine()

    def claim(machine: Machine) -> None:
        machine.grow(5 * 512, leaf_pfns=[16, 18, 19])
        for leaf in machine.leaves[2:]:
            machine.write(leaf, (MFN_BASE + 100).to_bytes(8, "little") * 512)

    claim(machine)
    with pytest.raises(BadImage, match=f"names {OWNED + 3 * 512} of them, and it has {OWNED}"):
        make(tmp_path / "i", machine, budget_bytes=budget_bytes, domain_ends=domain_ends)
    assert (tmp_path / "i").stat().st_size < OWNED * 4096
    with pytest.raises(BadImage, match="of them, and it has"):
        make(tmp_path / "j", Machine(), meanwhile=claim, budget_bytes=budget_bytes)
