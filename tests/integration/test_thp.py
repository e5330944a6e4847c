"""What becomes of memory in small pages, by this machine's own kernel."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

import pytest

from snapvm.clock import Deadline
from snapvm.hypervisor import thp

HUGE_BYTES = 2 << 20
PAGES = HUGE_BYTES // mmap.PAGESIZE
PLACES = 80
"""More than there are in one slice."""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="joins pages as root does"),
    pytest.mark.skipif(not (thp.SETTINGS / "enabled").exists(), reason="no huge pages here"),
]


class Memory:
    """A mapping of this process in small pages, as QEMU has one after a capture."""

    def __init__(self) -> None:
        size_bytes = (PLACES + 1) * HUGE_BYTES
        self._map = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._first = -self._address % HUGE_BYTES
        for place in range(PLACES):
            self.write(place, PAGES)

    def write(self, place: int, pages: int) -> None:
        """Let a place for a huge page have only its first pages, the place's number in each."""
        begin = self._first + place * HUGE_BYTES
        self._map.madvise(mmap.MADV_DONTNEED, begin, HUGE_BYTES)
        for page in range(pages):
            self._map[begin + page * mmap.PAGESIZE] = place

    def read(self, place: int) -> list[int]:
        """Return the first byte of each page; one never written becomes the kernel's zero page."""
        begin = self._first + place * HUGE_BYTES
        return list(self._map[begin : begin + HUGE_BYTES : mmap.PAGESIZE])

    def advise(self) -> None:
        """Say that huge pages are wanted, as QEMU does for a guest's memory."""
        self._map.madvise(mmap.MADV_HUGEPAGE)

    def mib(self, name: str) -> int:
        """Return what the kernel says of the mapping (proc_pid_smaps(5))."""
        smaps = Path("/proc/self/smaps").read_text()
        for text in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE):
            place, value = (
                text.partition(" ")[0],
                re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE),
            )
            if value and self._address in range(*(int(end, 16) for end in place.split("-"))):
                return int(value[1]) >> 10
        raise AssertionError("there is no such mapping")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Memory:
    """A mapping, on a host where huge pages are wanted."""
    size_bytes = (thp.SETTINGS / "hpage_pmd_size").read_text()
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    (tmp_path / "hpage_pmd_size").write_text(size_bytes)
    monkeypatch.setattr(thp, "SETTINGS", tmp_path)
    return Memory()


def test_whole_places_become_huge_pages_and_others_need_no_more_than_before(
    memory: Memory,
) -> None:
    memory.write(7, PAGES - 1)
    memory.write(70, 0)
    assert memory.read(70) == [0] * PAGES
    memory.advise()
    before_mib = memory.mib("Rss")
    thp.join(os.getpid(), Deadline(60), left_bytes=0)
    assert memory.mib("AnonHugePages") == 2 * (PLACES - 2)
    assert memory.mib("Rss") == before_mib
    for place in range(PLACES):
        rest = {7: [7] * (PAGES - 1) + [0], 70: [0] * PAGES}.get(place, [place] * PAGES)
        assert memory.read(place) == rest


def test_what_is_not_to_be_in_huge_pages_stays_as_it_is(memory: Memory) -> None:
    thp.join(os.getpid(), Deadline(60), left_bytes=0)
    assert memory.mib("AnonHugePages") == 0


def test_little_is_left_to_the_kernel(memory: Memory) -> None:
    memory.advise()
    thp.join(os.getpid(), Deadline(60))
    assert memory.mib("AnonHugePages") == 0


def test_when_the_time_is_over_the_rest_stays_as_it_is(memory: Memory) -> None:
    memory.advise()
    thp.join(os.getpid(), Deadline(0), left_bytes=0)
    assert memory.mib("AnonHugePages") == 0


def test_nothing_is_joined_where_the_host_wants_no_huge_pages(memory: Memory) -> None:
    memory.advise()
    (thp.SETTINGS / "enabled").write_text("always madvise [never]\n")
    thp.join(os.getpid(), Deadline(60), left_bytes=0)
    assert memory.mib("AnonHugePages") == 0


def test_a_process_that_has_ended_is_no_failure(memory: Memory) -> None:
    memory.advise()
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    thp.join(child, Deadline(60), left_bytes=0)


def test_a_python_that_was_built_for_an_old_kernel_joins_pages_too(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `take` of a large guest ended as a bug, with uv's Python."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    memory.advise()
    thp.join(os.getpid(), Deadline(60), left_bytes=0)
    assert memory.mib("AnonHugePages") == 2 * PLACES


@pytest.mark.parametrize("lacking", ["enabled", "hpage_pmd_size"])
def test_a_kernel_without_huge_pages_is_no_failure(memory: Memory, lacking: str) -> None:
    memory.advise()
    (thp.SETTINGS / lacking).unlink()
    thp.join(os.getpid(), Deadline(60), left_bytes=0)
    assert memory.mib("AnonHugePages") == 0
