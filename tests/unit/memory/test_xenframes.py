"""The frames of an image, read where the survey has found them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapvm.memory.paging import Mapping, translate, who_maps
from snapvm.memory.pagingmode import FOUR_LEVEL
from snapvm.memory.xenframes import survey
from snapvm.refusals import BadImage
from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_builders import Guest


def test_the_walker_reads_an_image(tmp_path: Path) -> None:
    path = tmp_path / "img"
    path.write_bytes(Guest().encode())
    base = 0xFFFF_0000_0000_0000 | build.KERNEL_SLOT << 39
    with survey(path) as image:
        cr3 = image.vcpus[0].root << 12
        found = translate(FOUR_LEVEL, cr3, base + 520 * 4096 + 5, image.read_frame)
        assert isinstance(found, Mapping)
        assert (found.frame, found.table_frame, found.writable) == (520, build.L1 + 1, True)
        assert [m.va for m in who_maps(FOUR_LEVEL, cr3, 7, image.read_frame)] == [base + 7 * 4096]
        assert image.read_frame(595) is None
        assert image.read_frame(1 << 60) is None


def test_a_file_cut_short_under_us_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "img"
    path.write_bytes(Guest().encode())
    with survey(path) as image:
        os.truncate(path, 100_000)
        with pytest.raises(BadImage, match="a page is missing"):
            image.read_frame(500)
