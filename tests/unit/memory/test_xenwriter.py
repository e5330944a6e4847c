"""Images written in Xen's save format are as it is specified, and take a new configuration."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from snapvm.memory.xenformat import (
    CONFIG_LENGTH,
    PAGE_COUNT,
    PAGES_PER_BATCH,
    RECORD_HEADER,
    RecordType,
)
from snapvm.memory.xenimage import (
    CONFIG_PADDING_BYTES,
    ImageWriter,
    open_image,
    redefine,
    replace_config,
)
from snapvm.memory.xenrecord import PageBatch
from snapvm.memory.xenwriter import LEAST_GAP_BYTES, DomainHead, filler
from tests.fakes.power import Disk
from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_images import padded, pages_of, read, write


def test_what_is_written_is_byte_for_byte_what_the_specification_says() -> None:
    stream = io.BytesIO()
    write(build.Guest(), stream)
    assert stream.getvalue() == padded(build.Guest()).encode()


def test_more_pages_than_fit_a_record_are_divided() -> None:
    stream = io.BytesIO()
    write(build.Guest(per_record=1500, order=[*range(600), *range(600), *range(300)]), stream)
    records = read(stream.getvalue())
    assert pages_of(records) == build.Guest().pages
    counts = [len(batch.pfns) for batch in records if isinstance(batch, PageBatch)]
    assert counts == [1024, 476]


def test_a_sparse_image_has_the_same_bytes(tmp_path: Path) -> None:
    guest = build.Guest()
    for pfn in [*range(100, 300), 127]:
        guest.pages[pfn] = bytes(4096)
    with (tmp_path / "sparse").open("wb") as stream:
        write(guest, stream, is_sparse=True)
    data = (tmp_path / "sparse").read_bytes()
    assert data == padded(guest).encode()
    assert (tmp_path / "sparse").stat().st_blocks * 512 < len(data) - 150 * 4096


@pytest.mark.parametrize("rest_bytes", [-8, 0, 8, 16, LEAST_GAP_BYTES, LEAST_GAP_BYTES + 8])
@pytest.mark.parametrize("records", [1, 2])
def test_a_gap_of_any_length_is_filled_with_whole_records(records: int, rest_bytes: int) -> None:
    """Where one record is full and what is left is too short for another."""
    full_bytes = RECORD_HEADER.size + PAGE_COUNT.size + PAGES_PER_BATCH * 8
    filled = filler(records * full_bytes + rest_bytes, 7)
    assert len(filled) == records * full_bytes + rest_bytes
    at = 0
    while at < len(filled):
        kind, length_bytes = RECORD_HEADER.unpack_from(filled, at)
        (count, _) = PAGE_COUNT.unpack_from(filled, at + RECORD_HEADER.size)
        assert kind == RecordType.PAGE_DATA and 0 < count <= PAGES_PER_BATCH
        assert length_bytes == PAGE_COUNT.size + 8 * count
        at += RECORD_HEADER.size + length_bytes
    assert at == len(filled)


def test_a_writer_refuses_what_it_cannot_write() -> None:
    writer = ImageWriter(io.BytesIO(), "{}")
    with pytest.raises(ValueError, match="2 p2m frames"):
        writer.begin(
            DomainHead(xen_major=4, xen_minor=20, end_pfn=511, p2m_pfns=np.zeros(2, np.uint64))
        )
    writer.begin(
        DomainHead(xen_major=4, xen_minor=20, end_pfn=511, p2m_pfns=np.zeros(1, np.uint64))
    )
    one, page = np.zeros(1, np.uint8), np.zeros((1, 4096), np.uint8)
    writer.pages(np.array([511], np.uint64), one, page)
    for pfn, type_, data in [(512, 0, page), (1, 5, page[:0]), (1, 0xF, page), (1, 0, page[:0])]:
        with pytest.raises(ValueError, match="page"):
            writer.pages(np.array([pfn], np.uint64), one + np.uint8(type_), data)
    with pytest.raises(ValueError, match="NUL"):
        ImageWriter(io.BytesIO(), "\0")


@pytest.mark.skipif(shutil.which("xl") is None, reason="Xen's tools are not installed")
def test_xens_own_checker_accepts_what_is_written(tmp_path: Path) -> None:
    (checker,) = Path("/usr/lib").glob("xen-*/bin/verify-stream-v2")
    with (tmp_path / "img").open("wb") as stream:
        write(build.Guest(), stream)
    done = subprocess.run(
        [sys.executable, checker, "-f", "xl", "-i", tmp_path / "img"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_configuration_can_be_replaced_in_place(tmp_path: Path) -> None:
    path = tmp_path / "img"
    with path.open("wb") as stream:
        write(build.Guest(), stream)
    before = path.read_bytes()
    longer = '{"c_info":{"name":"' + "x" * 5000 + '"}}'
    assert replace_config(path, longer)
    with open_image(path) as image:
        assert image.config == longer
        assert pages_of(list(image.records())) == build.Guest().pages
    assert replace_config(path, build.CONFIG)
    assert path.read_bytes() == before
    assert not replace_config(path, "x" * (CONFIG_PADDING_BYTES + len(build.CONFIG) + 8))
    assert path.read_bytes() == before


def test_a_configuration_may_fill_all_of_its_room_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "img"
    with path.open("wb") as stream:
        write(build.Guest(), stream)
    with open_image(path) as image:
        at = image.config_offset_bytes
    before = path.read_bytes()
    (room_bytes,) = CONFIG_LENGTH.unpack_from(before, at - CONFIG_LENGTH.size)
    full = "x" * (room_bytes - 1)
    assert not replace_config(path, f"{full}x") and path.read_bytes() == before
    assert replace_config(path, full)
    assert path.read_bytes() == before[:at] + full.encode() + b"\0" + before[at + room_bytes :]


def test_another_configuration_is_on_the_disk(tmp_path: Path) -> None:
    with (tmp_path / "img").open("wb") as stream:
        write(build.Guest(), stream)
    with Disk.watched() as disk:
        redefine(tmp_path / "img", build.CONFIG)
        assert list(disk.losing(tmp_path / "img")) == []
