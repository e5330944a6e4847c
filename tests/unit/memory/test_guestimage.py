"""The engine on a guest made by hand: what it writes is what the guest was when it stood still."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from snapvm import retry
from snapvm.memory import framestore
from snapvm.memory.foreignlog import ForeignLog
from snapvm.memory.normalise import ForeignEntries
from snapvm.memory.verify import verify_image
from snapvm.memory.xenframes import survey
from snapvm.memory.xenimage import open_image
from snapvm.memory.xenrecord import PageBatch
from snapvm.memory.xenwriter import head_bytes
from snapvm.model import Silent
from snapvm.refusals import BadImage
from tests.fakes.xenmachine import FOREIGN_MFN, SHARED_INFO_MFN, Machine
from tests.unit.memory.guestcapture import (
    ONE,
    PLENTY,
    SOME,
    TABLES,
    begun,
    expected,
    frames_of,
    make,
)
from tests.unit.memory.xen_builders import CONFIG, L1, L2, MFN_BASE, OWNED


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
    assert ("stand still until all its memory is written" in caplog.text) == (not budget_bytes)
    assert frames_of(tmp_path / "i") == expected(machine)
    assert facts.frames == OWNED
    assert facts.foreign == {}
    assert facts.changed_frames == changed
    assert facts.size_bytes == (tmp_path / "i").stat().st_size
    assert way in method
    report = verify_image(tmp_path / "i")
    assert report.is_sound, report.findings


def offsets_of_ordinary_pages(path: Path) -> npt.NDArray[np.int64]:
    with survey(path) as found:
        pfns = np.arange(OWNED, dtype=np.uint64)
        ordinary: npt.NDArray[np.int64] = found.index.offsets(pfns)[found.index.types(pfns) == 0]
    assert len(ordinary) == OWNED - TABLES
    return ordinary


@pytest.mark.parametrize("length_bytes", range(len(CONFIG), len(CONFIG) + 8))
def test_a_page_is_where_a_page_of_the_file_is(tmp_path: Path, length_bytes: int) -> None:
    """Written over it was two halves, each of which was read from the disk before."""
    machine = Machine()
    image = begun(tmp_path / "i", machine, definition=CONFIG.ljust(length_bytes))
    image.prepare(machine.shared_info, Silent())
    image.catch(machine.standing())
    image.write(Silent())
    image.close()
    assert frames_of(tmp_path / "i") == expected(machine)
    assert not (offsets_of_ordinary_pages(tmp_path / "i") % 4096).any()


def gap_before_the_pages(path: Path) -> int:
    """Return the length of the record before the first one that has pages."""
    with open_image(path) as image:
        heads = []
        for batch in image.records():
            if isinstance(batch, PageBatch):
                if batch.has_data.any():
                    break
                heads.append(head_bytes(len(batch.pfns)))
    return heads[-1]


@pytest.mark.parametrize("too_small_bytes", [8, 16])
def test_a_page_is_there_too_where_no_record_fits_before_it(
    tmp_path: Path, too_small_bytes: int
) -> None:
    """What is left of a page of the file may be less than the smallest record needs."""
    make(tmp_path / "i", Machine())
    fewer_bytes = gap_before_the_pages(tmp_path / "i") - too_small_bytes
    assert 0 < fewer_bytes < 4096
    make(tmp_path / "j", Machine(), definition=CONFIG.ljust(len(CONFIG) + fewer_bytes))
    assert gap_before_the_pages(tmp_path / "j") == 4096 + too_small_bytes
    assert not (offsets_of_ordinary_pages(tmp_path / "j") % 4096).any()
    assert frames_of(tmp_path / "j") == expected(Machine())
    assert verify_image(tmp_path / "j").is_sound


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


def test_a_guest_full_of_foreign_entries_costs_no_memory_to_speak_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may map its shared_info wherever it likes; each such entry was kept, for a count."""
    caplog.set_level("INFO", "snapvm")
    machine = Machine()
    for pfn in range(100, 500):
        machine.write(MFN_BASE + pfn, (SHARED_INFO_MFN << 12 | 0x67).to_bytes(8, "little") * 512)
        machine.type_of[MFN_BASE + pfn] = 1
    kept = 0
    add = ForeignLog.add

    def counted(log: ForeignLog, entries: ForeignEntries) -> None:
        nonlocal kept
        add(log, entries)
        kept = sum(part.nbytes for part in log._first)
        assert all(part.base is None for part in log._first)

    monkeypatch.setattr(ForeignLog, "add", counted)
    facts, _ = make(tmp_path / "i", machine)
    assert facts.foreign == {"shared info": 400 * 512}
    assert 0 < kept < 4096
    assert caplog.text.count("zeroed entry") == 64


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


def test_another_configuration_can_be_had_at_last(tmp_path: Path) -> None:
    machine = Machine()
    image = begun(tmp_path / "i", machine)
    image.prepare(machine.shared_info, Silent())
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


@pytest.mark.parametrize("domain_ends", [False, True])
@pytest.mark.parametrize("tree", [0, (1 << 64) - 1])
def test_a_kernel_that_does_not_tell_its_frames_is_not_made_stand_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: int, *, domain_ends: bool
) -> None:
    """A unikernel: it was suspended first, and all was in vain."""
    monkeypatch.setattr(retry, "_BOOT_SECONDS", 0.0)
    machine = Machine()
    page = bytearray(machine.shared_info())
    struct.pack_into("<Q", page, 3096, tree)
    image = begun(tmp_path / "i", machine, domain_ends=domain_ends)
    with pytest.raises(BadImage, match="does not tell"):
        image.prepare(lambda: bytes(page), Silent())
    image.close()
    assert not machine.open_mappings


def test_a_guest_that_boots_is_waited_for(tmp_path: Path) -> None:
    """One that had been started just before was refused."""
    machine = Machine()
    begins = bytearray(machine.shared_info())
    struct.pack_into("<Q", begins, 3096, 0)
    pages = iter([bytes(begins), bytes(begins)])
    image = begun(tmp_path / "i", machine)

    def shared_info() -> bytes:
        return next(pages, machine.shared_info())

    image.prepare(shared_info, Silent())
    image.close()


def test_leaving_early_gives_everything_back(tmp_path: Path) -> None:
    machine = Machine()
    image = begun(tmp_path / "i", machine, 1 << 40)
    image.prepare(machine.shared_info, Silent())
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
    image = begun(tmp_path / "i", machine, budget_bytes)
    asked: list[int] = []
    types = machine.types

    def types_until_given_up(mfns: memoryview) -> memoryview:
        asked.append(len(mfns))
        image.give_up()
        return types(mfns)

    try:
        image.prepare(machine.shared_info, Silent())
        monkeypatch.setattr(machine, "types", types_until_given_up)
        with pytest.raises(BadImage, match="given up"):
            image.catch(machine.standing())
    finally:
        image.close()
    assert len(asked) < OWNED / 4 / 2
