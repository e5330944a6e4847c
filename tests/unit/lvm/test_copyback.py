"""A disk taken back to a thick snapshot of it, on files that stand for devices."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import pytest

from snapvm.failures import CommandFailed, StorageFailed
from snapvm.lvm import copyback, directio
from snapvm.model import LvRef, LvUuid, Silent
from snapvm.process import Completed, Conversation
from tests.unit.lvm.store_builder import build_store

CHUNK = 64 << 10
CHUNKS = 100


class Kernel:
    """Answers ``dmsetup status``."""

    def __init__(self, status: str) -> None:
        self._status = status

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float = 120.0, kill: bool = True
    ) -> Completed:
        assert tuple(argv) == ("dmsetup", "status", "--noflush", "vg-disk.snap")
        if not self._status:
            raise CommandFailed(argv=tuple(argv), status=1, stderr="no such device")
        return Completed(argv=tuple(argv), status=0, stdout=self._status, stderr="", seconds=0)

    def converse(self, argv: Sequence[str]) -> AbstractContextManager[Conversation]:
        raise NotImplementedError


class Bench:
    """A disk, a snapshot of it and the snapshot's store, as files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chance = random.Random(7)
        self.before = chance.randbytes(CHUNKS * CHUNK)
        self.changed = sorted(chance.sample(range(CHUNKS), 30))
        now = bytearray(self.before)
        for chunk in self.changed:
            now[chunk * CHUNK : chunk * CHUNK + 512] = chance.randbytes(512)
        monkeypatch.setattr(copyback, "_MAPPER", folder)
        monkeypatch.setattr(LvRef, "path", property(lambda ref: folder / f"{ref.vg}-{ref.lv}"))
        self.disk = LvRef(vg="vg", lv="disk", uuid=LvUuid("d"))
        self.snapshot = LvRef(vg="vg", lv="disk.snap", uuid=LvUuid("s"))
        self.store = folder / "vg-disk.snap-cow"
        self.disk.path.write_bytes(now)
        self.snapshot.path.write_bytes(self.before)
        self.keep(self.changed)

    def keep(self, chunks: Sequence[int]) -> None:
        kept = {n: self.before[n * CHUNK : (n + 1) * CHUNK] for n in chunks}
        self.store.write_bytes(build_store(kept, chunk_bytes=CHUNK))

    @property
    def status(self) -> str:
        """What the kernel says of the store as it is: one table, the header, the chunks."""
        sectors = CHUNK // 512
        return f"0 9999 snapshot {(2 + len(self.changed)) * sectors}/99999 {2 * sectors}\n"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_the_disk_is_what_it_was_and_only_changed_chunks_are_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[int] = set()
    plain = directio.Device.read

    def noting(self: directio.Device, offset: int, length: int) -> memoryview:
        if self.size_bytes == CHUNKS * CHUNK:
            read.update(range(offset // CHUNK, -(-(offset + length) // CHUNK)))
        return plain(self, offset, length)

    monkeypatch.setattr(directio.Device, "read", noting)
    copyback.copy_back(Kernel(bench.status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == bench.before
    assert read == set(bench.changed)


@pytest.mark.parametrize(
    "status",
    ["", "0 9999 snapshot 256/99999 256\n", "0 9999 snapshot Invalid\n"],
    ids=["none", "other count", "words"],
)
def test_what_the_kernel_does_not_confirm_is_compared_whole(bench: Bench, status: str) -> None:
    bench.keep(bench.changed[:10])  # a table that lacks most of it
    copyback.copy_back(Kernel(status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == bench.before


@pytest.mark.parametrize("status", ["", "as it is"])
def test_chunks_that_are_equal_are_not_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """The snapshot would copy each of them, and it may have no room left for one."""
    written: set[int] = set()
    plain = directio.Device.write

    def noting(self: directio.Device, offset: int, view: memoryview) -> None:
        written.update(range(offset // CHUNK, -(-(offset + len(view)) // CHUNK)))
        plain(self, offset, view)

    monkeypatch.setattr(directio.Device, "write", noting)
    copyback.copy_back(Kernel(status and bench.status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == bench.before
    assert written == set(bench.changed)


def test_a_store_of_another_format_is_compared_whole(bench: Bench) -> None:
    bench.store.write_bytes(bytes(CHUNK))
    copyback.copy_back(Kernel(bench.status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == bench.before


def test_a_disk_that_has_grown_keeps_its_end(bench: Bench) -> None:
    with bench.disk.path.open("ab") as file:
        file.write(b"n" * CHUNK)
    copyback.copy_back(Kernel(bench.status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == bench.before + b"n" * CHUNK


def test_a_lost_snapshot_and_a_smaller_disk_change_nothing(bench: Bench) -> None:
    now = bench.disk.path.read_bytes()
    store = bench.store.read_bytes()
    bench.store.write_bytes(store[:4] + bytes(4) + store[8:])
    with pytest.raises(StorageFailed, match="lost"):
        copyback.copy_back(Kernel(bench.status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == now
    bench.store.write_bytes(store)
    bench.disk.path.write_bytes(now[: 20 * CHUNK])
    with pytest.raises(StorageFailed, match="smaller"):
        copyback.copy_back(Kernel(bench.status), bench.snapshot, bench.disk, Silent())
    assert bench.disk.path.read_bytes() == now[: 20 * CHUNK]


class Blank:
    """A device of zeros."""

    size_bytes = 1 << 40

    def __init__(self) -> None:
        self._buffer = memoryview(bytes(4096))

    def read(self, _offset: int, length: int) -> memoryview:
        return self._buffer[:length]


def test_runs_are_not_kept() -> None:
    """A large disk that has changed in many places: there is no memory for a list of them."""
    many = 100_000

    def runs() -> Iterator[tuple[int, int]]:
        return ((2 * CHUNK * number, 512) for number in range(many))

    device = cast("directio.Device", Blank())
    tracemalloc.start()
    try:
        copyback._copy(runs, device, device, Silent())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < many
