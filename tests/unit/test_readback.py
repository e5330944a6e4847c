"""Reading an image while something else is done: it is waited for, or ended."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from snapvm import checksum, readback
from snapvm.model import MemoryRecord, Silent
from snapvm.refusals import RecordUnusable


class Noting(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.told = 0

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        self.told += 1


def recorded(path: Path, *, size_bytes: int = 64 << 20) -> MemoryRecord:
    with path.open("wb") as file:
        file.write(b"x" * size_bytes)
    sum_ = checksum.of_file(path, Silent())
    return MemoryRecord(file=path.name, format="libvirt-save", size_bytes=size_bytes, checksum=sum_)


def test_the_verdict_is_waited_for(tmp_path: Path) -> None:
    path, progress = tmp_path / "image", Noting()
    memory = recorded(path)
    with readback.being_read(path, memory, progress) as require_right:
        require_right()
    assert progress.phases == ["reading the memory image"]
    with path.open("r+b") as file:
        file.write(b"y")
    with (
        pytest.raises(RecordUnusable, match="has changed"),
        readback.being_read(path, memory, progress) as require_right,
    ):
        require_right()


def test_a_block_that_fails_ends_the_reading(tmp_path: Path) -> None:
    path, progress = tmp_path / "image", Noting()
    memory = recorded(path)
    with pytest.raises(ZeroDivisionError), readback.being_read(path, memory, progress):
        raise ZeroDivisionError
    assert progress.told == 0
    assert threading.active_count() == 1


def test_without_memory_there_is_nothing_to_wait_for() -> None:
    with readback.being_read(None, None, Silent()) as require_right:
        require_right()
