"""A sample of ``make fuzz``: every parser reads or refuses what is spoiled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.harness import run
from tests.fuzz.targets import Target, all_targets

INPUTS = 60
SLOW_INPUTS = 12
"""Of those that need a whole host of fakes, or an image of megabytes."""


@pytest.mark.parametrize("which", range(18))
def test_spoiled_input_is_read_or_refused(tmp_path: Path, which: int) -> None:
    target = all_targets(tmp_path / "examples")[which]
    is_slow = target.name.startswith(("journal", "xl image"))
    count = SLOW_INPUTS if is_slow else INPUTS
    until = time.monotonic() + 60
    tally = run(target, tmp_path / "input", seed="sample", first=0, count=count, until=until)
    assert tally.inputs == count
    assert not tally.failures, tally.failures


@pytest.mark.parametrize("which", range(18))
def test_what_is_spoiled_was_sound(tmp_path: Path, which: int) -> None:
    """Else every input is refused for the same reason, and nothing behind it is tried."""
    target = all_targets(tmp_path / "examples")[which]
    for number, seed in enumerate(target.seeds):
        folder = tmp_path / f"input{number}"
        folder.mkdir()
        target.read(seed, folder)


def test_all_of_them_are_tried(tmp_path: Path) -> None:
    assert len(all_targets(tmp_path)) == 18


def test_what_fails_is_told(tmp_path: Path) -> None:
    """The harness itself: neither a bug nor a hang goes by."""

    def broken(_data: bytes, _folder: Path) -> None:
        raise ZeroDivisionError

    target = Target(name="broken", seeds=(b"seed",), read=broken)
    until = time.monotonic() + 60
    tally = run(target, tmp_path / "input", seed="sample", first=0, count=2, until=until)
    assert len(tally.failures) == 2 and "ZeroDivisionError" in tally.failures[0]
