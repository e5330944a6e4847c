"""The table of a thick snapshot's store: read as it was written, and never trusted further."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm.lvm.exceptionstore import StoreLost, StoreUnreadable, read_table
from tests.unit.lvm.store_builder import build_store

DISK_BYTES = 64 << 20


def read(store: bytes, disk_bytes: int = DISK_BYTES) -> list[int]:
    def pread(offset: int, length: int) -> memoryview:
        found = memoryview(store)[offset : offset + length]
        if len(found) != length:
            raise OSError("beyond the end")
        return found

    table = read_table(pread, len(store), disk_bytes)
    step = table.chunk_bytes
    chunks = [offset // step for offset, _ in table.runs(step, disk_bytes)]
    assert len(table) == len(chunks)
    return chunks


@given(st.lists(st.integers(0, DISK_BYTES // 4096 - 1), unique=True, max_size=600))
def test_what_was_kept_is_read(chunks: list[int]) -> None:
    assert read(build_store(dict.fromkeys(chunks, b"x"))) == sorted(chunks)


@pytest.mark.parametrize("count", [255, 256, 257, 511, 512, 513])
def test_tables_that_are_just_full(count: int) -> None:
    assert read(build_store(dict.fromkeys(range(count), b""))) == list(range(count))


def test_a_snapshot_the_kernel_gave_up_is_lost() -> None:
    with pytest.raises(StoreLost):
        read(build_store({1: b"x"}, valid=0))


@pytest.mark.parametrize(
    "store",
    [
        build_store({}, magic=b"\0\0\0\0"),
        build_store({}, version=2),
        build_store({}, chunk_bytes=4096)[:4096].replace(b"\x08\0\0\0", b"\x07\0\0\0"),
        build_store({DISK_BYTES // 4096: b"beyond the disk"}),
        build_store({1: b"x"}, spare_chunks=0)[: 2 * 4096],
        build_store(dict.fromkeys(range(256), b""), spare_chunks=0)[: 258 * 4096],
    ],
    ids=["magic", "version", "chunk", "disk", "store", "no end"],
)
def test_what_is_not_as_known_is_refused(store: bytes) -> None:
    with pytest.raises(StoreUnreadable):
        read(store)


def test_a_chunk_that_is_named_twice_is_refused() -> None:
    store = bytearray(build_store({1: b"x", 2: b"y"}))
    store[4096 + 16 : 4096 + 24] = (1).to_bytes(8, "little")
    with pytest.raises(StoreUnreadable, match="twice"):
        read(bytes(store))


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    store = bytearray(build_store(dict.fromkeys(range(20), b"x")))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, 2 * 4096 - 1))
        store[at] = data.draw(st.integers(0, 255))
    try:
        chunks = read(bytes(store))
    except (StoreLost, StoreUnreadable, OSError):
        return
    assert all(chunk < DISK_BYTES // 4096 for chunk in chunks)


@given(
    chunks=st.sets(st.integers(0, 999), max_size=300),
    limit_chunks=st.integers(1, 64),
    cut_bytes=st.integers(0, 7).map(lambda sectors: sectors * 512),
)
def test_runs_cover_just_the_chunks(chunks: set[int], limit_chunks: int, cut_bytes: int) -> None:
    store = build_store(dict.fromkeys(chunks, b""))
    disk_bytes = 1000 * 4096 - cut_bytes
    table = read_table(lambda at, n: memoryview(store)[at : at + n], len(store), disk_bytes)
    covered: set[int] = set()
    for offset, length in table.runs(limit_chunks * 4096, disk_bytes):
        assert 0 < length <= limit_chunks * 4096 and offset + length <= disk_bytes
        found = set(range(offset // 4096, -(-(offset + length) // 4096)))
        assert not covered & found
        covered |= found
    assert covered == chunks


def test_the_table_of_a_large_disk_takes_little_memory() -> None:
    """The domain is off and there is no way back: no memory must be what ends it."""
    many = 100_000
    # Every other chunk of the disk, the last first: as many runs as there can be.
    store = build_store(dict.fromkeys(range(2 * (many - 1), -1, -2), b""))
    disk_bytes = 2 * many * 4096
    tracemalloc.start()
    try:
        table = read_table(lambda at, n: memoryview(store)[at : at + n], len(store), disk_bytes)
        runs = sum(1 for _ in table.runs(4 << 20, disk_bytes))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(table) == runs == many
    assert peak_bytes < 2 * many + (128 << 10)
