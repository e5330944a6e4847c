"""Looking at many files: not all at the same time, and those that hang hold up no others."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from snapvm.hypervisor import answers

MANY = [Path(str(number)) for number in range(200)]


def test_many_are_looked_at_a_few_at_a_time() -> None:
    """All at once they needed as many descriptors, and threads, as a host has disks."""
    under_way: list[Path] = []
    most = 0

    def look(path: Path) -> Path:
        nonlocal most
        under_way.append(path)
        most = max(most, len(under_way))
        time.sleep(0.05)
        under_way.remove(path)
        return path

    assert answers.asked(look, MANY) == {path: path for path in MANY}
    assert most < len(MANY) // 2


def test_those_that_hang_are_left_out_and_hold_up_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "LIMIT_SECONDS", 0.1)
    hangs = threading.Event()

    def look(path: Path) -> None:
        if path != MANY[-1]:
            hangs.wait()

    try:
        assert answers.asked(look, MANY) == {MANY[-1]: None}
    finally:
        hangs.set()
