"""Which frames differ from their copies, against looking at each; runs end where they may not."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm.memory.framecopies import FrameCopies, Marks, Offsets, Pages

FRAMES = 1400
GAP_AT = 700
"""Before this one a header stands in the image."""
GAP_BYTES = 8192
rows = st.sets(st.integers(0, FRAMES - 1), max_size=12)


def pages() -> Pages:
    numbers = np.arange(FRAMES * 512, dtype=np.uint64).reshape(FRAMES, 512)
    return np.asarray(numbers.view(np.uint8))


def marks(without: set[int]) -> Marks:
    found = np.ones(FRAMES, np.bool_)
    found[list(without)] = False
    return found


def within(work: Callable[[FrameCopies, Offsets], None]) -> None:
    """Have the pages in a file as an image has them."""
    with tempfile.TemporaryFile() as image:
        written = pages().tobytes()
        image.write(bytes(4096))
        image.write(written[: GAP_AT * 4096] + bytes(GAP_BYTES) + written[GAP_AT * 4096 :])
        image.flush()
        offsets = 4096 + np.arange(FRAMES, dtype=np.int64) * 4096
        offsets[GAP_AT:] += GAP_BYTES
        copies = FrameCopies(image.fileno(), 4096, image.tell())
        try:
            work(copies, offsets)
        finally:
            copies.close()


@given(changed=rows, hot=rows, late=rows, is_remembered=st.booleans())
def test_what_differs_is_found_and_nothing_else(
    changed: set[int], hot: set[int], late: set[int], is_remembered: bool
) -> None:
    """``late`` are compared no more, by which the runs are others than were remembered."""
    live = pages()
    for row in changed:
        live[row, row * 37 % 4096] ^= 1

    def work(copies: FrameCopies, offsets: Offsets) -> None:
        if is_remembered:
            copies.remember(offsets, marks(hot))
        found = copies.differing(live, offsets, marks(hot | late))
        assert set(np.flatnonzero(found).tolist()) == changed - hot - late

    within(work)


def test_copies_with_a_digest_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the window reads the guest's memory and not the image's; a late table costs one run."""
    read: list[tuple[int, int]] = []
    copies_of = FrameCopies._copies

    def noting(copies: FrameCopies, offsets: Offsets, start: int, stop: int) -> Pages:
        read.append((start, stop))
        return copies_of(copies, offsets, start, stop)

    monkeypatch.setattr(FrameCopies, "_copies", noting)

    def work(copies: FrameCopies, offsets: Offsets) -> None:
        copies.remember(offsets, marks(set()))
        assert read == [(0, 512), (512, 700), (700, 1024), (1024, 1400)]
        read.clear()
        assert not copies.differing(pages(), offsets, marks(set())).any()
        assert read == []
        assert not copies.differing(pages(), offsets, marks({100})).any()
        assert read == [(0, 100), (101, 512)]

    within(work)
