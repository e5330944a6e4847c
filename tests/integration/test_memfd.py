"""Memory in a memfd that a process has not used, by this machine's own kernel."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import memfd, qemurun, smaps
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind, Silent
from snapvm.refusals import DomainRefused

MIB = 1 << 20
SIZE_BYTES = 80 * MIB
"""More than is looked at at once."""
DEMO = Domain(
    name="demo",
    uuid=DomainUuid("00000000-0000-4000-8000-000000000001"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.RUNNING,
    memory_bytes=SIZE_BYTES,
    vcpus=1,
    definition="<domain/>",
)


@pytest.fixture(autouse=True)
def _qemu_is_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo.pid").write_text(str(os.getpid()))
    monkeypatch.setattr(qemurun, "PID_FILES", tmp_path)


@contextmanager
def mapped(flags: int = mmap.MAP_SHARED) -> Iterator[mmap.mmap]:
    """Have memory as QEMU has it in a memfd; the guest has used the first MiB of it."""
    file = os.memfd_create("pc.ram")
    try:
        os.ftruncate(file, SIZE_BYTES)
        with mmap.mmap(file, SIZE_BYTES, flags) as memory:
            memory[:MIB] = b"\1" * MIB
            yield memory
    finally:
        os.close(file)


def there_bytes() -> int:
    """Return how much the kernel says to be there of what is in the memfd."""
    return sum(each.bytes_of("Rss") for each in smaps.of(os.getpid()) if "pc.ram" in each.path)


def leave_spare(spare: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    free, swap = spare // 2 // 1024, (spare - spare // 2) // 1024
    meminfo.write_text(f"MemFree: 1 kB\nMemAvailable: {free} kB\nSwapFree:   {swap} kB\n")
    monkeypatch.setattr(memfd, "MEMINFO", meminfo)


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_what_was_never_used_is_there_before_qemu_reads_it(flags: int) -> None:
    with mapped(flags) as memory:
        assert there_bytes() < 2 * MIB
        memfd.fill(DEMO, Silent())
        assert there_bytes() == SIZE_BYTES
        assert memory[: MIB + 1] == b"\1" * MIB + b"\0"


def test_memory_that_costs_nothing_is_left_as_it_is() -> None:
    with mmap.mmap(-1, SIZE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), mapped():
        before = sum(each.bytes_of("Rss") for each in smaps.of(os.getpid()) if not each.inode)
        memfd.fill(DEMO, Silent())
        after = sum(each.bytes_of("Rss") for each in smaps.of(os.getpid()) if not each.inode)
    assert after - before < SIZE_BYTES // 2


def test_memory_that_virtio_mem_keeps_from_the_guest_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_spare(0, tmp_path, monkeypatch)
    device = "<domain><devices><memory model='virtio-mem'/></devices></domain>"
    with mapped():
        memfd.require_room(replace(DEMO, definition=device))
        memfd.fill(replace(DEMO, definition=device), Silent())
        assert there_bytes() < 2 * MIB


def test_nothing_is_captured_when_the_host_has_not_so_much_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mapped():
        leave_spare(SIZE_BYTES // 2, tmp_path, monkeypatch)
        with pytest.raises(DomainRefused, match=r"79 MiB of its memory .* only 40 MiB"):
            memfd.require_room(DEMO)
        leave_spare(SIZE_BYTES, tmp_path, monkeypatch)
        memfd.require_room(DEMO)


@pytest.mark.parametrize("name", ["meminfo", "nowhere"])
def test_a_host_that_does_not_tell_what_is_left_is_not_in_the_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    monkeypatch.setattr(memfd, "MEMINFO", tmp_path / name)
    with mapped():
        memfd.require_room(DEMO)


def test_a_process_that_has_ended_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "demo.pid").write_text(str(2**22 + 1))
    memfd.require_room(DEMO)
    memfd.fill(DEMO, Silent())
