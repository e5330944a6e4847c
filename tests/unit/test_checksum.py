"""Checksums: every byte counts, and where the file system keeps holes does not."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm import checksum
from snapvm.model import Silent

MIB = 1 << 20


def of(path: Path) -> str:
    return checksum.of_file(path, Silent())


def written(path: Path, size_bytes: int, places: list[int], *, sparse: bool) -> Path:
    """Make a file of zeros, as holes or not, with a few bytes here and there."""
    with path.open("wb") as file:
        if not sparse:
            file.write(bytes(size_bytes))
        file.truncate(size_bytes)
        for place in places:
            file.seek(place % size_bytes)
            file.write(b"\1")
    return path


@settings(max_examples=25)
@given(st.integers(1, 9 * MIB), st.lists(st.integers(0, 9 * MIB), max_size=4))
def test_holes_are_zeros(
    tmp_path_factory: pytest.TempPathFactory, size_bytes: int, places: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("sum")
    sums = {
        of(written(folder / str(sparse), size_bytes, places, sparse=sparse))
        for sparse in (True, False)
    }
    assert len(sums) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_does_not_tell_of_holes_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = written(tmp_path / "image", 3 * MIB + 5, [7, 3 * MIB + 4], sparse=True)
    before = of(path)

    def refuse(*_args: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "lseek", refuse)
    assert of(path) == before


@pytest.mark.parametrize("bad_at", [MIB, MIB + 4096, 2 * MIB - 4096, 3 * MIB])
def test_a_bad_block_is_no_end_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_at: int
) -> None:
    """What stood behind it in its piece was left out, of the image's record and of each check."""
    path = written(tmp_path / "image", 3 * MIB + 8192, [7, 3 * MIB + 8191], sparse=False)
    preadv = os.preadv

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == bad_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        ends_early = offset < bad_at < offset + len(buffers[0])
        few = memoryview(buffers[0])[: bad_at - offset] if ends_early else buffers[0]
        return preadv(descriptor, [few], offset)

    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(OSError, match="Input/output error"):
        of(path)


@pytest.mark.parametrize("place", [0, MIB - 1, MIB, 2 * MIB + 77, 5 * MIB])
def test_one_bit_anywhere_is_another_checksum(tmp_path: Path, place: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(3 * MIB) + bytes(2 * MIB) + b"x")
    before = of(path)
    assert checksum.is_known(before)
    assert checksum.is_right(path, before, Silent())
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    assert not checksum.is_right(path, before, Silent())


def test_the_length_counts_and_so_does_the_place(tmp_path: Path) -> None:
    """A longer file of zeros, and the same piece elsewhere, are other files."""
    sums = set()
    for number, data in enumerate((b"", bytes(1), bytes(MIB), bytes(2 * MIB))):
        path = tmp_path / str(number)
        path.write_bytes(data)
        sums.add(of(path))
    for place in (0, MIB):
        sums.add(of(written(tmp_path / f"at{place}", 3 * MIB, [place], sparse=True)))
    assert len(sums) == 6


def test_those_of_before_are_still_compared(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(MIB + 5))
    whole = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert checksum.is_known(f"blake2b:{whole}")
    assert checksum.is_right(path, f"blake2b:{whole}", Silent())
    assert not checksum.is_right(path, f"blake2b:{whole[::-1]}", Silent())
    assert not checksum.is_known("sha3:00") and not checksum.is_known("")


@pytest.mark.parametrize("other", ["", "sha3:00"])
def test_one_that_cannot_be_computed_says_nothing(tmp_path: Path, other: str) -> None:
    """It is a newer snapvm's, or was lost."""
    assert checksum.is_right(tmp_path / "not read", other, Silent())


def test_those_by_crc_are_still_compared(tmp_path: Path) -> None:
    """As they were computed of what stands here, by the version that had them."""
    path = written(tmp_path / "image", 3 * MIB + 5, [7, 3 * MIB + 4], sparse=True)
    before = "crc32-pieces:559c2c0e6d66a23160d6f6791c507712"
    assert checksum.is_known(before)
    assert checksum.is_right(path, before, Silent())
    with path.open("r+b") as file:
        file.write(b"x")
    assert not checksum.is_right(path, before, Silent())


IN_OLDER_RECORDS = "xxh64-pieces:4ee2301ea56e129b90c26de2426f9a8e"


def test_a_checksum_stays_what_it_is(tmp_path: Path) -> None:
    """What is in a record has to be understood for as long as the record is kept."""
    path = written(tmp_path / "image", 3 * MIB + 5, [7, 3 * MIB + 4], sparse=True)
    assert of(path) == "xxh64-sha256:8c173404cd3a84f7847f728010a3fc91"
    assert checksum.is_known(IN_OLDER_RECORDS)
    assert checksum.is_right(path, IN_OLDER_RECORDS, Silent())
    with path.open("r+b") as file:
        file.write(b"x")
    assert not checksum.is_right(path, IN_OLDER_RECORDS, Silent())


@pytest.mark.parametrize("refusal", [TypeError, ValueError])
def test_a_host_without_blake2_makes_checksums_and_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: type[Exception]
) -> None:
    """With FIPS mode on, Red Hat's Python has one that takes no digest_size, and fails."""
    path = written(tmp_path / "image", MIB + 5, [7], sparse=True)
    before = of(path)

    def blake2b(*_args: object, **_named: object) -> None:
        raise refusal("'digest_size' is an invalid keyword argument for openssl_blake2b()")

    monkeypatch.setattr(hashlib, "blake2b", blake2b)
    assert of(path) == before
    assert checksum.is_known(before)
    assert not checksum.is_known(IN_OLDER_RECORDS)
    assert checksum.is_right(path, IN_OLDER_RECORDS, Silent())
    path.write_bytes(b"x")
    assert not checksum.is_right(path, before, Silent())
