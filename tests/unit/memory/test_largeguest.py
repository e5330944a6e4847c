"""The engine on a guest larger than the memory there is: digests stand for its pages."""

from __future__ import annotations

import ctypes
import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapvm import durable, memoryroom, xxh64
from snapvm.memory import framecopies, framestore, guestreader, precopy
from snapvm.memory.standingpages import StandingPages
from snapvm.memory.verify import verify_image
from snapvm.memoryroom import Room
from snapvm.model import Silent
from snapvm.refusals import BadImage
from tests.fakes.xenmachine import Machine
from tests.unit.memory.guestcapture import (
    LITTLE,
    ONE,
    PLENTY,
    SOME,
    TABLES,
    begun,
    expected,
    frames_of,
    make,
)
from tests.unit.memory.xen_builders import MFN_BASE, OWNED

ORDINARY = range(100, 580)
"""PFNs of pages that are no tables."""


def changing(seed: int) -> Callable[[Machine], None]:
    """Have a guest write, become other tables, and be given other frames."""

    def change(machine: Machine) -> None:
        chance = random.Random(seed)
        pfns = chance.sample(ORDINARY, chance.choice([3, 40, len(ORDINARY) - 40]) + 20)
        for pfn in pfns[:10]:
            machine.move(pfn, 0x1800 + pfn)
        for pfn in pfns[10:20]:
            entries = np.zeros(512, "<u8")
            entries[chance.randrange(512)] = (MFN_BASE + chance.choice(pfns[20:])) << 12 | 1
            machine.write(MFN_BASE + pfn, entries.tobytes())
            machine.type_of[MFN_BASE + pfn] = 1
        for pfn in pfns[20:]:
            machine.write(MFN_BASE + pfn, pfn.to_bytes(8, "little") * 512)

    return change


@pytest.mark.parametrize("seed", range(6))
def test_whatever_memory_there_is_the_image_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 32)
    images = []
    for budget_bytes in (PLENTY, SOME, LITTLE, 0):
        path = tmp_path / f"{budget_bytes}"
        make(path, Machine(), meanwhile=changing(seed), budget_bytes=budget_bytes)
        report = verify_image(path)
        images.append((frames_of(path), report.tables))
    assert images[0] == images[1] == images[2] == images[3]


def test_a_file_that_cannot_be_mapped_is_told_apart_by_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mergerfs, and other file systems in user space, refuse that; the guest was not captured."""
    make(tmp_path / "mapped", Machine(), meanwhile=changing(0))

    def refused(*_args: object) -> int | None:
        ctypes.set_errno(errno.ENODEV)
        return ctypes.c_void_p(-1).value

    monkeypatch.setattr(framecopies, "_mmap", refused)
    _, method = make(tmp_path / "not", Machine(), meanwhile=changing(0))
    assert "digests (its file cannot be mapped: No such device)" in method
    assert frames_of(tmp_path / "not") == frames_of(tmp_path / "mapped")


def test_one_whose_p2m_the_host_cannot_have_need_not_stand_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each `take` said that it would stand still until all was written; it did, and failed."""
    monkeypatch.setattr(guestreader, "_P2M_BYTES", OWNED * 8 - 1)
    monkeypatch.setattr(memoryroom, "available_bytes", lambda: 0)
    machine = Machine()
    image = begun(tmp_path / "i", machine)
    with pytest.raises(BadImage, match="its p2m takes"):
        image.prepare(machine.shared_info, Silent())
    image.close()
    assert caplog.text == "" and not machine.open_mappings
    monkeypatch.setattr(guestreader, "_P2M_BYTES", 2 * 4096)
    make(tmp_path / "j", Machine())


@pytest.mark.parametrize("for_copies_bytes", [0, OWNED * 4096 * 65 // 64])
def test_no_more_memory_is_taken_than_there_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    for_copies_bytes: int,
) -> None:
    """Of a guest of which there were copies, all that had changed was kept beside them."""
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 8)
    monkeypatch.setattr(memoryroom, "LEAST_ROOM_BYTES", 0)
    taken: list[int] = []
    chunks: dict[int, framestore.Chunk] = {}
    keep = framestore.Chunk.keep

    def noting(chunk: framestore.Chunk, *arguments: Any) -> None:
        keep(chunk, *arguments)
        chunks[id(chunk)] = chunk
        taken.append(sum(each.room.nbytes for each in chunks.values()))

    monkeypatch.setattr(framestore.Chunk, "keep", noting)
    machine = Machine()
    image = begun(tmp_path / "i", machine, for_copies_bytes + LITTLE)
    image.prepare(machine.shared_info, Silent())
    for pfn in ORDINARY:
        machine.write(MFN_BASE + pfn, ONE)
    image.rehearse(machine.shared_info())
    image.catch(machine.standing())
    assert taken and max(taken) <= LITTLE
    assert not caplog.text, "said while it stands still"
    machine.write(MFN_BASE + 100, bytes(4096))
    facts = image.write(Silent())
    image.close()
    assert "more had changed than this host could spare" in caplog.text
    assert facts.changed_frames == len(ORDINARY) + TABLES
    assert frames_of(tmp_path / "i") == expected(machine) | dict.fromkeys(ORDINARY, ONE)


def test_what_has_been_written_while_it_stands_still_is_not_gone_through_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time memory was full all chunks so far were: twice the pause for one of 256 GiB."""
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 8)
    monkeypatch.setattr(memoryroom, "LEAST_ROOM_BYTES", 0)
    visited: list[framestore.Chunk] = []
    write_kept = StandingPages.write_kept

    def noting(pages: StandingPages, chunk: framestore.Chunk) -> None:
        visited.append(chunk)
        write_kept(pages, chunk)

    monkeypatch.setattr(StandingPages, "write_kept", noting)
    machine = Machine()
    image = begun(tmp_path / "i", machine, LITTLE)
    image.prepare(machine.shared_info, Silent())
    for pfn in ORDINARY:
        machine.write(MFN_BASE + pfn, ONE)
    image.rehearse(machine.shared_info())
    image.catch(machine.standing())
    assert len(visited) == len(set(map(id, visited))) > 10
    image.write(Silent())
    image.close()
    assert frames_of(tmp_path / "i") == expected(machine) | dict.fromkeys(ORDINARY, ONE)


def test_what_is_written_again_is_out_of_memory_before_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a guest that writes all the time, too: what the last pass wrote was still in the cache."""
    monkeypatch.setattr(precopy, "LITTLE_BYTES", 100 * 4096)
    machine, waiting = Machine(), 0
    rewrite, let_go = durable.rewrite, durable.let_go

    def noting(descriptor: int, data: memoryview, offset_bytes: int) -> None:
        nonlocal waiting
        waiting += 1
        rewrite(descriptor, data, offset_bytes)

    def letting_go(descriptor: int) -> None:
        nonlocal waiting
        waiting = 0
        let_go(descriptor)
        for pfn in ORDINARY:
            machine.write(MFN_BASE + pfn, random.randbytes(8) * 512)

    monkeypatch.setattr(durable, "rewrite", noting)
    monkeypatch.setattr(durable, "let_go", letting_go)
    image = begun(tmp_path / "i", machine, SOME)
    image.prepare(machine.shared_info, Silent())
    image.close()
    assert waiting <= 100


def test_room_is_reckoned_with_what_is_kept_beside_the_pages() -> None:
    def room(spare_mib: int) -> Room:
        return Room(needed_bytes=640 << 20, spare_bytes=spare_mib << 20)

    assert not room(640 + 10 + 511).holds_all
    assert room(640 + 10 + 512).holds_all
    assert room(640 + 10 + 512).for_pages_bytes == 512 << 20
    assert room(640 + 10 + 640).for_pages_bytes is None
    assert room(20).holds_digests
    assert room(20).for_pages_bytes == 10 << 20
    assert not room(19).holds_digests


@pytest.mark.parametrize(
    ("guest_gib", "least_mib"), [(4, 128), (32, 640), (128, 2176), (256, 4224)]
)
def test_a_large_guest_is_copied_while_it_runs_where_what_is_kept_of_it_has_room(
    guest_gib: int, least_mib: int
) -> None:
    """One of 128 GiB stood still until all of it was written, for a control domain of 4.

    Later one of 32 for a control domain of 1, which has room to look at it by one thread.
    """

    def room(spare_mib: int) -> Room:
        return Room(needed_bytes=guest_gib << 30, spare_bytes=spare_mib << 20)

    assert room(least_mib).holds_digests
    assert not room(least_mib - 1).holds_digests


def test_how_far_each_pass_is_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar stood at its end for as long as the passes after the first took."""
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 300)
    seen: list[str | int] = []

    class Noting(Silent):
        def phase(self, text: str) -> None:
            seen.append(text)

        def advance(self, done: int, total: int) -> None:
            assert total == OWNED * 4096
            seen.append(done // 4096)

    machine = Machine()
    image = begun(tmp_path / "i", machine, SOME)
    image.prepare(machine.shared_info, Noting())
    image.close()
    again = "copying the memory that has changed, pass 1"
    assert seen == [300, OWNED, again, 300, OWNED]


def test_what_changes_during_the_first_pass_is_written_while_it_runs(tmp_path: Path) -> None:
    machine = Machine()

    class Writing(Silent):
        """Stands for a guest that writes while it is copied."""

        def advance(self, done: int, total: int) -> None:
            machine.write(MFN_BASE + 100, ONE)

    image = begun(tmp_path / "i", machine, SOME)
    image.prepare(machine.shared_info, Writing())
    image.rehearse(machine.shared_info())
    image.catch(machine.standing())
    facts = image.write(Silent())
    image.close()
    assert facts.changed_frames == TABLES
    assert facts.frames == OWNED
    assert frames_of(tmp_path / "i") == expected(machine) | {100: ONE}


TWO = b"and anew" * 512


@pytest.mark.parametrize("is_again", [False, True])
def test_what_is_noted_of_a_page_is_what_was_written_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_again: bool
) -> None:
    """The guest writes it just between the two, and later has it again as it was noted."""
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 32)
    machine = Machine()
    noted = ONE if is_again else machine.pages[MFN_BASE + 100]
    times, digests = 0, xxh64.digests

    class Writing(Silent):
        def advance(self, done: int, total: int) -> None:
            if done > 100 * 4096:
                machine.write(MFN_BASE + 100, noted)

    def noting(data: memoryview, piece_bytes: int, seed: int) -> list[int]:
        nonlocal times
        found = digests(data, piece_bytes, seed)
        if noted in bytes(data) and (len(data) == len(noted)) is is_again and not times:
            times += 1
            machine.write(MFN_BASE + 100, TWO)
        return found

    image = begun(tmp_path / "i", machine, SOME)
    monkeypatch.setattr(xxh64, "digests", noting)
    image.prepare(machine.shared_info, Writing())
    assert times == 1
    machine.write(MFN_BASE + 100, noted)
    image.rehearse(machine.shared_info())
    image.catch(machine.standing())
    image.write(Silent())
    image.close()
    assert frames_of(tmp_path / "i") == expected(machine) | {100: noted}


def test_what_is_written_while_it_stands_still_ends_when_nobody_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was kept went into the file before the guest went on: gigabytes, on a large host."""
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", 8)
    machine = Machine()
    image = begun(tmp_path / "i", machine, SOME)
    written: list[int] = []
    rewrite = durable.rewrite

    def rewrite_and_give_up(descriptor: int, data: memoryview, offset_bytes: int) -> None:
        rewrite(descriptor, data, offset_bytes)
        written.append(offset_bytes)
        image.give_up()

    try:
        image.prepare(machine.shared_info, Silent())
        image.rehearse(machine.shared_info())
        for pfn in ORDINARY:
            machine.write(MFN_BASE + pfn, ONE)
        monkeypatch.setattr(durable, "rewrite", rewrite_and_give_up)
        with pytest.raises(BadImage, match="given up"):
            image.catch(machine.standing())
    finally:
        image.close()
    assert 0 < len(written) <= 8 + 1, "more than a chunk, and the head"
