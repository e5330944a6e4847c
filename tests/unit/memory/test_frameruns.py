"""Which frames differ from what an image has: of both kinds of originals, as looking at each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm import xxh64
from snapvm.memory.framecopies import FrameCopies
from snapvm.memory.frameruns import FrameRuns, Offsets, Originals, Pages, Run
from snapvm.memory.pagedigests import PageDigests
from snapvm.memory.pagingmode import Marks

FRAMES = 1400
GAP_AT = 700
"""Before this one a header stands in the image."""
GAP_BYTES = 8192
KINDS = ("copies", "digests")
rows = st.sets(st.integers(0, FRAMES - 1), max_size=12)


def pages() -> Pages:
    numbers = np.arange(FRAMES * 512, dtype=np.uint64).reshape(FRAMES, 512)
    return np.asarray(numbers.view(np.uint8))


def changed_in(some: set[int]) -> Pages:
    live = pages()
    for row in some:
        live[row, row * 37 % 4096] ^= 1
    return live


def marks(without: set[int]) -> Marks:
    found = np.ones(FRAMES, np.bool_)
    found[list(without)] = False
    return found


def within(kind: str, work: Callable[[Originals, Offsets], None]) -> None:
    """Have the pages in a file as an image has them."""
    with tempfile.TemporaryFile() as image:
        written = pages().tobytes()
        image.write(bytes(4096))
        image.write(written[: GAP_AT * 4096] + bytes(GAP_BYTES) + written[GAP_AT * 4096 :])
        image.flush()
        offsets = 4096 + np.arange(FRAMES, dtype=np.int64) * 4096
        offsets[GAP_AT:] += GAP_BYTES
        originals: Originals
        if kind == "copies":
            originals = FrameCopies(image.fileno(), 4096, image.tell())
        else:
            originals = digests = PageDigests(FRAMES)
            digests.note(np.arange(FRAMES), pages())
        try:
            work(originals, offsets)
        finally:
            originals.close()


@pytest.mark.parametrize("kind", KINDS)
@given(changed=rows, earlier=rows, hot=rows, late=rows, is_remembered=st.booleans())
def test_what_differs_is_found_and_nothing_else(
    kind: str,
    changed: set[int],
    earlier: set[int],
    hot: set[int],
    late: set[int],
    is_remembered: bool,
) -> None:
    """Some had changed ``earlier``; ``late`` are compared no more, and so the runs are others."""

    def work(originals: Originals, offsets: Offsets) -> None:
        runs = FrameRuns(originals)
        if is_remembered:
            runs.remember(changed_in(earlier), offsets, marks(hot))
        found = runs.differing(changed_in(changed), offsets, marks(hot | late))
        assert set(np.flatnonzero(found).tolist()) == changed - hot - late

    within(kind, work)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("copies", FrameCopies), ("digests", PageDigests)],
)
def test_what_has_a_digest_is_not_looked_at_one_by_one(
    monkeypatch: pytest.MonkeyPatch, kind: str, asked: type[FrameCopies | PageDigests]
) -> None:
    """So the window reads the guest's memory and nothing else; a late table costs one run."""
    read: list[tuple[int, int]] = []

    def noting(look: Callable[..., Any]) -> Callable[..., Any]:
        def noted(originals: Originals, run: Run, live: Pages) -> Any:
            read.append((run.start, run.stop))
            return look(originals, run, live)

        return noted

    for name in ("pages", "differing"):
        monkeypatch.setattr(asked, name, noting(getattr(asked, name)))

    def work(originals: Originals, offsets: Offsets) -> None:
        runs = FrameRuns(originals)
        runs.remember(pages(), offsets, marks(set()))
        assert dict.fromkeys(read) == dict.fromkeys(
            [(0, 512), (512, 700), (700, 1024), (1024, 1400)]
        )
        read.clear()
        assert not runs.differing(pages(), offsets, marks(set())).any()
        assert read == []
        assert not runs.differing(pages(), offsets, marks({100})).any()
        assert set(read) == {(0, 100), (101, 512)}

    within(kind, work)


def test_a_guest_that_writes_meanwhile_is_not_remembered_as_it_is_then() -> None:
    """A digest of what the guest had later would hide that the image has it otherwise."""

    def work(originals: Originals, offsets: Offsets) -> None:
        runs = FrameRuns(originals)
        later = changed_in({600})
        runs.remember(later, offsets, marks(set()))
        found = runs.differing(later, offsets, marks(set()))
        assert np.flatnonzero(found).tolist() == [600]

    for kind in KINDS:
        within(kind, work)


def test_a_page_written_while_it_is_remembered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run was as the image has it; then it was not, and only then was its digest made."""
    digests = xxh64.digests

    def work(originals: Originals, offsets: Offsets) -> None:
        runs = FrameRuns(originals)
        live = pages()

        def writing_after(data: memoryview, piece_bytes: int, seed: int) -> list[int]:
            found = digests(data, piece_bytes, seed)
            live[600] += 1
            return found

        with monkeypatch.context() as patched:
            patched.setattr(xxh64, "digests", writing_after)
            runs.remember(live, offsets, marks(set()))
        found = runs.differing(live, offsets, marks(set()))
        assert np.flatnonzero(found).tolist() == [600]

    within("digests", work)


def test_what_is_compared_keeps_no_descriptors() -> None:
    """A large control domain could not capture a guest of 64 GiB: "Too many open files"."""
    with tempfile.TemporaryFile() as image:
        image.write(bytes(4096) + b"web1" * 1024)
        image.flush()
        before = os.listdir("/proc/self/fd")
        copies = [FrameCopies(image.fileno(), 4096, 8192) for _ in range(8)]
        assert len(os.listdir("/proc/self/fd")) == len(before)
        live = np.zeros((1, 4096), np.uint8)
        for each in copies:
            assert bytes(each.pages(Run(0, 1, 4096), live)) == b"web1" * 1024
            each.close()
            each.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        FrameCopies(-1, 4096, 8192)
