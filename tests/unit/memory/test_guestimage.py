"""The engine on a guest made by hand: what it writes is what the guest was when it stood still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from snapvm.memory import framestore
from snapvm.memory.guestimage import PvGuestImage
from snapvm.memory.verify import verify_image
from snapvm.memory.xenframes import survey
from snapvm.memory.xenimage import open_image
from snapvm.model import Silent
from snapvm.refusals import BadImage
from snapvm.xenguest import ImageFacts
from tests.fakes.xenmachine import FOREIGN_MFN, HOST, Change, FixedMemory, Machine
from tests.unit.memory.xen_builders import CONFIG, L1, L2, MFN_BASE, OWNED, P2M

ONE = b"changed!" * 512
TABLES = 6
PLENTY = 1 << 40
SOME = OWNED * 4096 // 2
"""Of memory: no room for all pages, but for what is kept in place of them."""
LITTLE = OWNED * 4096 // 24
"""Of memory: not enough for what may change."""
NOTHING: Change = lambda _: None  # noqa: E731


def make(
    path: Path,
    machine: Machine,
    *,
    meanwhile: Change = NOTHING,
    after: Change = NOTHING,
    budget_bytes: int = PLENTY,
    domain_ends: bool = False,
) -> tuple[ImageFacts, str]:
    """Capture: ``meanwhile`` happens while it runs, ``after`` when it runs again."""
    image = PvGuestImage(FixedMemory(budget_bytes), domain_ends=domain_ends)
    try:
        method = image.prepare(path, CONFIG, HOST, machine, machine.shared_info, Silent())
        image.rehearse(machine.shared_info())
        meanwhile(machine)
        image.catch(machine.standing())
        after(machine)
        return image.write(Silent()), method
    finally:
        image.close()
        assert not machine.open_mappings


def frames_of(path: Path) -> dict[int, bytes]:
    with survey(path) as image:
        pages = {pfn: image.read_frame(pfn) for pfn in range(image.end_pfn + 1)}
    return {pfn: page for pfn, page in pages.items() if page is not None}


def expected(machine: Machine) -> dict[int, bytes]:
    """What an image must hold: the guest of the builder, and the tree of its p2m."""
    pages = dict(machine.guest.pages)
    for pfn in (30, 31):
        pages[pfn] = machine.pages[MFN_BASE + pfn]
    return pages


@pytest.mark.parametrize(
    ("budget_bytes", "way", "changed"),
    [
        (PLENTY, "precopy while it ran, then", TABLES),
        (SOME, "precopy while it ran, told apart by digests (its 2 MiB and what changes", TABLES),
        (0, "one pass into the file", OWNED),
    ],
)
def test_an_idle_guest_is_written_as_it_is(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    budget_bytes: int,
    way: str,
    changed: int,
) -> None:
    machine = Machine()
    facts, method = make(tmp_path / "i", machine, budget_bytes=budget_bytes)
    # In silence a guest of 16 GiB stood still for minutes, for a control domain of 2.
    assert ("stand still until all of it is written" in caplog.text) == (not budget_bytes)
    assert frames_of(tmp_path / "i") == expected(machine)
    assert facts.frames == OWNED
    assert facts.foreign == {}
    assert facts.changed_frames == changed
    assert facts.size_bytes == (tmp_path / "i").stat().st_size
    assert way in method
    report = verify_image(tmp_path / "i")
    assert report.is_sound, report.findings


@pytest.mark.parametrize("length_bytes", range(len(CONFIG), len(CONFIG) + 8))
def test_a_page_is_where_a_page_of_the_file_is(tmp_path: Path, length_bytes: int) -> None:
    """Written over it was two halves, each of which was read from the disk before."""
    machine = Machine()
    image = PvGuestImage(FixedMemory(PLENTY))
    definition = CONFIG.ljust(length_bytes)
    image.prepare(tmp_path / "i", definition, HOST, machine, machine.shared_info, Silent())
    image.catch(machine.standing())
    image.write(Silent())
    image.close()
    assert frames_of(tmp_path / "i") == expected(machine)
    with survey(tmp_path / "i") as found:
        pfns = np.arange(OWNED, dtype=np.uint64)
        ordinary = found.index.offsets(pfns)[found.index.types(pfns) == 0]
    assert len(ordinary) == OWNED - TABLES
    assert not (ordinary % 4096).any()


@pytest.mark.parametrize("budget_bytes", [PLENTY, SOME])
def test_what_changes_while_it_runs_is_in_and_what_changes_later_is_not(
    tmp_path: Path, budget_bytes: int
) -> None:
    machine = Machine()

    def meanwhile(machine: Machine) -> None:
        machine.write(MFN_BASE + 100, ONE)
        machine.write(MFN_BASE + 589, ONE)

    def after(machine: Machine) -> None:
        machine.write(MFN_BASE + 101, ONE)

    facts, _ = make(
        tmp_path / "i", machine, meanwhile=meanwhile, after=after, budget_bytes=budget_bytes
    )
    assert facts.changed_frames == TABLES + 2
    assert frames_of(tmp_path / "i") == expected(machine) | {100: ONE, 589: ONE}


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


def test_a_page_that_becomes_a_table_is_made_canonical(tmp_path: Path) -> None:
    machine = Machine()

    def meanwhile(machine: Machine) -> None:
        entries = np.zeros(512, "<u8")
        entries[7] = (MFN_BASE + 200) << 12 | 1
        machine.write(MFN_BASE + 50, entries.tobytes())
        machine.type_of[MFN_BASE + 50] = 1

    make(tmp_path / "i", machine, meanwhile=meanwhile)
    table = np.frombuffer(frames_of(tmp_path / "i")[50], "<u8")
    assert int(table[7]) == 200 << 12 | 1


def test_a_foreign_entry_is_zeroed_and_counted(tmp_path: Path) -> None:
    machine = Machine()

    def meanwhile(machine: Machine) -> None:
        entries = np.frombuffer(machine.pages[MFN_BASE + L1], "<u8").copy()
        entries[100] = FOREIGN_MFN << 12 | 0x67
        machine.write(MFN_BASE + L1, entries.tobytes())

    facts, _ = make(tmp_path / "i", machine, meanwhile=meanwhile)
    assert facts.foreign == {"unknown": 1}
    assert int(np.frombuffer(frames_of(tmp_path / "i")[L1], "<u8")[100]) == 0
    assert verify_image(tmp_path / "i").is_sound


def test_a_foreign_entry_above_the_last_level_is_refused(tmp_path: Path) -> None:
    machine = Machine()
    entries = np.frombuffer(machine.pages[MFN_BASE + L2], "<u8").copy()
    entries[5] = FOREIGN_MFN << 12 | 0x67
    machine.write(MFN_BASE + L2, entries.tobytes())
    with pytest.raises(BadImage, match="does not own"):
        make(tmp_path / "i", machine)


def test_one_that_ends_with_its_capture_is_written_when_its_disks_are_caught(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    entries = np.frombuffer(machine.pages[MFN_BASE + L1], "<u8").copy()
    entries[100] = FOREIGN_MFN << 12 | 0x67
    machine.write(MFN_BASE + L1, entries.tobytes())
    facts, method = make(tmp_path / "i", machine, domain_ends=True)
    assert "it was to end" in method and caplog.text == ""
    assert facts.frames == facts.changed_frames == OWNED
    assert facts.foreign == {"unknown": 1}
    assert machine.pages[MFN_BASE + L1] == entries.tobytes()
    frames = frames_of(tmp_path / "i")
    assert frames.keys() == expected(machine).keys()
    assert verify_image(tmp_path / "i").is_sound


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

    image = PvGuestImage(FixedMemory(PLENTY))
    method = image.prepare(tmp_path / "i", CONFIG, HOST, machine, shared_info, Silent())
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
    image = PvGuestImage(FixedMemory(budget_bytes))
    try:
        image.prepare(tmp_path / "i", CONFIG, HOST, machine, machine.shared_info, Silent())
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
    monkeypatch.setattr("snapvm.memory.guestimage._P2M_ROOM", 4)
    make(tmp_path / "i", Machine(), meanwhile=lambda m: m.grow(1100, leaf_pfns=[16]))
    with pytest.raises(BadImage, match="changed its size"):
        make(tmp_path / "j", Machine(), meanwhile=lambda m: m.grow(1600, leaf_pfns=[16, 18]))


def test_another_configuration_can_be_had_at_last(tmp_path: Path) -> None:
    machine = Machine()
    image = PvGuestImage(FixedMemory(PLENTY))
    image.prepare(tmp_path / "i", CONFIG, HOST, machine, machine.shared_info, Silent())
    image.catch(machine.standing())
    size_bytes = image.write(Silent()).size_bytes
    image.redefine(CONFIG.replace("{", '{"longer":1,', 1))
    with pytest.raises(BadImage, match="no room"):
        image.redefine("x" * 100_000)
    image.close()
    with open_image(tmp_path / "i") as found:
        assert found.config.startswith('{"longer":1,')
    assert (tmp_path / "i").stat().st_size == size_bytes
    assert frames_of(tmp_path / "i") == expected(machine)


def test_leaving_early_gives_everything_back(tmp_path: Path) -> None:
    machine = Machine()
    image = PvGuestImage(FixedMemory(1 << 40))
    image.prepare(tmp_path / "i", CONFIG, HOST, machine, machine.shared_info, Silent())
    assert machine.open_mappings
    image.close()
    image.close()
    assert not machine.open_mappings


@pytest.mark.parametrize("budget_bytes", [PLENTY, 0])
def test_a_guest_does_not_stand_still_for_memory_that_nobody_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget_bytes: int
) -> None:
    """A disk had no snapshot, and gigabytes were written to a file before the guest went on."""
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 4)
    machine = Machine()
    image = PvGuestImage(FixedMemory(budget_bytes))
    asked: list[int] = []
    types = machine.types

    def types_until_given_up(mfns: memoryview) -> memoryview:
        asked.append(len(mfns))
        image.give_up()
        return types(mfns)

    try:
        image.prepare(tmp_path / "i", CONFIG, HOST, machine, machine.shared_info, Silent())
        monkeypatch.setattr(machine, "types", types_until_given_up)
        with pytest.raises(BadImage, match="given up"):
            image.catch(machine.standing())
    finally:
        image.close()
    assert len(asked) < OWNED / 4 / 2
