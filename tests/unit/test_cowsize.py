"""How large the store of a thick snapshot is."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snapvm import cowsize
from snapvm.cowsize import DEFAULT_CHUNK_BYTES, FULL, CowSize

EXTENT = 4 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("full", FULL),
        ("20%", CowSize(percent=20)),
        ("0.5%", CowSize(percent=0.5)),
        ("4G", CowSize(changed_bytes=4 << 30)),
        ("512m", CowSize(changed_bytes=512 << 20)),
        ("1GiB", CowSize(changed_bytes=1 << 30)),
        ("65536B", CowSize(changed_bytes=65536)),
    ],
)
def test_sizes_that_can_be_asked_for(text: str, size: CowSize) -> None:
    assert cowsize.parse(text) == size
    assert cowsize.parse(str(size)) == size


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "-1G", "4X", "nan%", "1e9", "full ", "٣G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        cowsize.parse(text)


@pytest.mark.parametrize("text", ["20", "4096", "1099511627776"])
def test_a_number_without_a_unit_is_not_taken_for_one_of_bytes(text: str) -> None:
    """To LVM it is one of MiB: ``--cow-size 4096`` gave a snapshot 4 MiB, and it was lost soon."""
    with pytest.raises(ValueError, match="a size such as 4G"):
        cowsize.parse(text)


@pytest.mark.parametrize(("text", "size"), [("64K", 65536), ("4096", 4096), ("512KiB", 524288)])
def test_chunks_that_lvm_takes(text: str, size: int) -> None:
    assert cowsize.parse_chunk(text) == size


@pytest.mark.parametrize("text", ["", "0", "48K", "2K", "1M", "64", "full", "12%"])
def test_chunks_that_lvm_does_not_take(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        cowsize.parse_chunk(text)


@given(
    disk_chunks=st.integers(1, 1 << 24),
    extent=st.sampled_from([1 << 16, 1 << 20, EXTENT]),
    chunk=st.sampled_from([4 << 10, 64 << 10, 512 << 10]),
)
@example(disk_chunks=(64 << 10) // 16, extent=64 << 10, chunk=64 << 10)
def test_a_full_store_holds_every_chunk_with_its_tables(
    disk_chunks: int, extent: int, chunk: int
) -> None:
    """Laid out as the kernel does: header, then tables, each before its chunks."""
    size = cowsize.store_bytes(disk_chunks * chunk, extent, FULL, chunk)
    # After the last chunk the kernel still writes a table that says there is no more.
    tables = disk_chunks // (chunk // 16) + 1
    assert size % extent == 0
    assert size >= (1 + disk_chunks + tables) * chunk
    assert size < (1 + disk_chunks + tables) * chunk + max(extent, 3 * chunk)


@given(percent=st.floats(0.01, 100), disk_gib=st.integers(1, 4096))
def test_a_share_is_never_more_than_all(percent: float, disk_gib: int) -> None:
    disk_bytes = disk_gib << 30
    share = cowsize.store_bytes(disk_bytes, EXTENT, CowSize(percent=percent), DEFAULT_CHUNK_BYTES)
    assert share <= cowsize.store_bytes(disk_bytes, EXTENT, FULL, DEFAULT_CHUNK_BYTES)
    assert share >= disk_bytes * percent / 100
