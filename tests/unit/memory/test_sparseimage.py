"""Sparse images: what a stream holds is in them, where QEMU looks for it, and zeros are holes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm import durable
from snapvm.failures import StorageFailed
from snapvm.memory import libvirtimage, savedstream, sparseimage
from snapvm.model import Silent
from snapvm.refusals import BadImage, HostLacks
from tests.unit.memory import qemu_builders as build
from tests.unit.memory.qemu_builders import GOOD, PAGE, Entry, Stream


def converted(folder: Path, stream: bytes) -> Path:
    """Convert an image with this stream."""
    source = build.save(folder / "stream.save", stream)
    target = folder / "sparse.save"
    size_bytes = sparseimage.convert(source, target, Silent())
    assert size_bytes == target.stat().st_size
    return target


def test_pages_are_where_their_block_says(tmp_path: Path) -> None:
    image = build.read_sparse(converted(tmp_path, GOOD.encode()))
    assert image.pages["pc.ram", 6] == build.filled(6)
    assert image.pages["pc.bios", 3] == build.filled(77)
    assert image.rest == GOOD.rest


def test_the_header_and_the_definition_are_kept(tmp_path: Path) -> None:
    target = converted(tmp_path, GOOD.encode())
    header = libvirtimage.read_header(target)
    assert (header.format, header.was_running, header.data_bytes) == (6, True, 100)
    assert target.read_bytes()[92:101] == b"<domain/>"
    assert target.stat().st_mode & 0o777 == 0o600


def test_zero_pages_of_memory_are_holes_without_a_bit(tmp_path: Path) -> None:
    length = sparseimage.KEEP_ZEROS_LIMIT_BYTES * 2
    entries = [Entry("pc.ram", n, build.filled(n) if n == 9 else b"") for n in range(4000)]
    entries += [Entry("pc.ram", 5000, bytes(PAGE))]
    stream = replace(GOOD, blocks=(("pc.ram", length),), records=(tuple(entries),))
    target = converted(tmp_path, stream.encode())
    assert set(build.read_sparse(target).pages) == {("pc.ram", 9)}
    assert target.stat().st_size > length
    assert target.stat().st_blocks * 512 < 1 << 20


def test_zero_pages_of_firmware_are_told(tmp_path: Path) -> None:
    """QEMU would leave there what the new machine's firmware has."""
    target = converted(tmp_path, GOOD.encode())
    pages = build.read_sparse(target).pages
    assert pages["pc.bios", 2] == bytes(PAGE)
    assert ("pc.bios", 1) not in pages
    assert target.stat().st_blocks * 512 < 200_000


def test_zero_pages_of_memory_that_outlives_the_domain_are_told(tmp_path: Path) -> None:
    """A <shmem> is a file of the host: what it has by then would be seen in their place."""
    name = "0000:00:05.0//objects/shmmem-shmem0"
    length = sparseimage.KEEP_ZEROS_LIMIT_BYTES * 2
    stream = replace(GOOD, blocks=((name, length),), records=()).having(
        Entry(name, 3, build.filled(3)), Entry(name, 4), Entry(name, 5)
    )
    pages = build.read_sparse(converted(tmp_path, stream.encode())).pages
    assert pages == {(name, 3): build.filled(3), (name, 4): bytes(PAGE), (name, 5): bytes(PAGE)}


def test_many_pages_that_became_zero_take_little_memory(tmp_path: Path) -> None:
    """All of their zeros were in memory at once."""
    count = sparseimage.KEEP_ZEROS_LIMIT_BYTES // PAGE
    stream = replace(GOOD, blocks=(("vga", count * PAGE),), records=())
    stream = stream.having(Entry("vga", 300, build.filled(1)), Entry("vga", 9, build.filled(2)))
    stream = stream.having(*(Entry("vga", number) for number in range(10, count)))
    source = build.save(tmp_path / "stream.save", stream.encode())
    tracemalloc.start()
    sparseimage.convert(source, tmp_path / "sparse.save", Silent())
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 16 << 20
    pages = build.read_sparse(tmp_path / "sparse.save").pages
    assert pages["vga", 300] == bytes(PAGE) and pages["vga", 9] == build.filled(2)


def test_a_bitmap_is_of_the_hosts_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU reads it as longs: on a big-endian host other pages would be taken for zero."""
    blocks = (("s390.ram", 40_000 << 12),)
    numbers = [0, 9, 63, 64, 33_000, 1]
    stream = replace(GOOD, blocks=blocks, records=()).having(
        *(Entry("s390.ram", number, build.filled(number)) for number in numbers)
    )
    source = build.save(tmp_path / "stream.save", stream.encode())
    monkeypatch.setattr(sys, "byteorder", "big")
    sparseimage.convert(source, tmp_path / "sparse.save", Silent())
    monkeypatch.undo()
    data = (tmp_path / "sparse.save").read_bytes()
    at = data.index(b"s390.ram") + len(b"s390.ram") + 8 + 28
    words = struct.unpack_from(">625Q", data, at)
    assert [n for n in range(40_000) if words[n // 64] >> n % 64 & 1] == sorted(numbers)


def test_a_header_is_read_in_either_byte_order(tmp_path: Path) -> None:
    """libvirt writes those of its own snapshots in that of its host."""
    source = build.save(tmp_path / "big.save", GOOD.encode(), order=">")
    header = libvirtimage.read_header(source)
    assert (header.format, header.was_running, header.data_bytes) == (0, True, 100)
    libvirtimage.set_running(source, running=False)
    assert struct.unpack_from(">I", source.read_bytes(), 24) == (0,)
    sparseimage.convert(source, tmp_path / "sparse.save", Silent())
    assert libvirtimage.read_header(tmp_path / "sparse.save").format == libvirtimage.FORMAT_SPARSE
    assert struct.unpack_from(">5I", (tmp_path / "sparse.save").read_bytes(), 16)[:4] == (
        (2, 100, 0, 6)
    )
    source.write_bytes(source.read_bytes()[:16] + struct.pack("<I", 3) + bytes(200))
    with pytest.raises(BadImage, match="version 3 is not known"):
        libvirtimage.read_header(source)


@pytest.mark.parametrize("size_bytes", [0, 16, 19, 91])
def test_an_image_that_ends_within_its_header_is_a_bad_one(tmp_path: Path, size_bytes: int) -> None:
    source = build.save(tmp_path / "short.save", GOOD.encode())
    os.truncate(source, size_bytes)
    with pytest.raises(BadImage, match="within the header") as bad:
        libvirtimage.read_header(source)
    assert bad.value.offset_bytes == size_bytes


@pytest.mark.parametrize("length", [64 * PAGE, sparseimage.KEEP_ZEROS_LIMIT_BYTES * 2])
def test_what_comes_later_counts(tmp_path: Path, length: int) -> None:
    """As when a running guest's pages are sent again."""
    last, zero = build.filled(2), ("pc.ram", 4)
    stream = replace(GOOD, blocks=(("pc.ram", length),), records=()).having(
        Entry("pc.ram", 3, build.filled(1)), Entry("pc.ram", 4, build.filled(1))
    )
    stream = stream.having(Entry("pc.ram", 3, last), Entry("pc.ram", 4))
    pages = build.read_sparse(converted(tmp_path, stream.encode())).pages
    assert pages["pc.ram", 3] == last
    assert pages.get(zero, bytes(PAGE)) == bytes(PAGE)


BLOCKS = (("pc.ram", 40_000 << 12), ("vga", 300 << 12))
entries = st.builds(
    lambda block, number, seed: Entry(
        BLOCKS[block][0], number % (BLOCKS[block][1] >> 12), build.filled(seed) if seed else b""
    ),
    st.integers(0, 1),
    st.one_of(st.integers(0, 20), st.integers(32_760, 32_775), st.integers(0, 39_999)),
    st.integers(0, 3),
)


@settings(max_examples=60)
@given(st.lists(st.lists(entries, max_size=40), min_size=1, max_size=4))
def test_any_stream_is_the_same_memory(
    tmp_path_factory: pytest.TempPathFactory, records: list[list[Entry]]
) -> None:
    stream = Stream(blocks=BLOCKS)
    wanted: dict[tuple[str, int], bytes] = {}
    for record in records:
        stream = stream.having(*record)
        for entry in record:
            wanted[entry.block, entry.number] = entry.data or bytes(PAGE)
    folder = tmp_path_factory.mktemp("any")
    target = converted(folder, stream.encode())
    found = build.read_sparse(target).pages
    shutil.rmtree(folder)
    assert found.keys() <= wanted.keys()
    assert all(found.get(place, bytes(PAGE)) == page for place, page in wanted.items())


def test_a_stream_that_zstd_has_compressed_becomes_the_same_image(tmp_path: Path) -> None:
    packed = subprocess.run(
        ["zstd", "-1", "--stdout"], input=GOOD.encode(), capture_output=True, check=True
    ).stdout
    source = build.save(tmp_path / "z.save", packed, libvirtimage.FORMAT_ZSTD)
    sparseimage.convert(source, tmp_path / "sparse.save", Silent())
    plain = converted(tmp_path, GOOD.encode())
    assert (tmp_path / "sparse.save").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("kept", [0, 20, -1])
def test_damage_within_the_compression_is_seen(tmp_path: Path, kept: int) -> None:
    packed = subprocess.run(
        ["zstd", "-1", "--check", "--stdout"], input=GOOD.encode(), capture_output=True, check=True
    ).stdout
    source = build.save(tmp_path / "z.save", packed[:kept] + b"?", libvirtimage.FORMAT_ZSTD)
    with pytest.raises(BadImage):
        sparseimage.convert(source, tmp_path / "sparse.save", Silent())


def test_without_zstd_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    source = build.save(tmp_path / "z.save", b"....", libvirtimage.FORMAT_ZSTD)
    with pytest.raises(HostLacks, match="zstd"), savedstream.opened(source):
        pass


def test_the_mark_of_the_switchover_is_kept(tmp_path: Path) -> None:
    """It stands between the last pages of a running guest and the devices."""
    record = build.encoded([Entry("pc.ram", 2, build.filled(2))], kind=3)
    image = build.read_sparse(
        converted(tmp_path, replace(GOOD, rest=b"\x08\0\x0b\0\0" + record + GOOD.rest).encode())
    )
    assert image.pages["pc.ram", 2] == build.filled(2)
    assert image.rest == b"\x08\0\x0b\0\0" + GOOD.rest


def test_the_image_of_an_arm_machine_says_how_large_a_page_is(tmp_path: Path) -> None:
    """QEMU does not load it otherwise: it takes pages for 1 KiB."""
    stream = replace(GOOD, configuration=build.PAGE_SIZE_PART)
    image = build.read_sparse(converted(tmp_path, stream.encode()))
    assert image.names_page_size
    assert image.pages["pc.ram", 6] == build.filled(6)


def test_what_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    known = b"\5\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\x0fx-ignore-shared"
    with pytest.raises(BadImage, match="x-ignore-shared"):
        converted(tmp_path, replace(GOOD, configuration=known).encode())
    sparse = converted(tmp_path, GOOD.encode())
    with pytest.raises(BadImage, match="format 6"):
        sparseimage.convert(sparse, tmp_path / "again.save", Silent())


def test_a_full_disk_is_told() -> None:
    with pytest.raises(OSError, match="space"):
        durable.rewrite(os.open("/dev/full", os.O_RDWR), memoryview(b"x"), 0)


def test_a_target_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    source = build.save(tmp_path / "stream.save", GOOD.encode())
    with pytest.raises(StorageFailed):
        sparseimage.convert(source, tmp_path / "missing" / "sparse.save", Silent())
