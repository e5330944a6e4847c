"""Reading an image while something else is done: it is waited for, or ended."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import pytest

from snapvm import checksum, readback
from snapvm.errors import Interrupted
from snapvm.interrupt import watched
from snapvm.model import MemoryRecord, Progress, Silent
from snapvm.refusals import RecordUnusable
from tests.unit.cli.signals import ctrl_c


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


class Held(readback._Watched):
    """Holds the reading at its first piece until the block is over; counts the pieces."""

    instances: ClassVar[list[Held]] = []
    limit_seconds = 10

    def __init__(self, shown: Progress) -> None:
        self.begun, self.left = threading.Event(), threading.Event()
        self.told = 0
        super().__init__(shown)
        self.instances.append(self)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if (name, value) == ("is_wanted", False):
            self.left.set()

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        self.told += 1
        if not self.begun.is_set():
            self.begun.set()
            self.left.wait(self.limit_seconds)
        super().advance(done_bytes, total_bytes)


def test_a_block_that_fails_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "image", Noting()
    memory = recorded(path)
    checksum.of_file(path, whole)
    assert whole.told > 1
    monkeypatch.setattr(Held, "instances", [])
    monkeypatch.setattr(readback, "_Watched", Held)
    with pytest.raises(ZeroDivisionError), readback.being_read(path, memory, Silent()):
        (held,) = Held.instances
        assert held.begun.wait(10)
        raise ZeroDivisionError
    assert held.told == 1
    assert threading.active_count() == 1


def test_ctrl_c_in_the_instant_in_which_it_begins_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of an image was read, for minutes, and no signal heard."""
    path = tmp_path / "image"
    memory = recorded(path)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        start(thread)
        ctrl_c()

    monkeypatch.setattr(Held, "instances", [])
    monkeypatch.setattr(Held, "limit_seconds", 1)
    monkeypatch.setattr(readback, "_Watched", Held)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(Interrupted), watched(), readback.being_read(path, memory, Silent()):
        pytest.fail("nothing was interrupted")
    assert sum(each.told for each in Held.instances) <= 1


def test_without_memory_there_is_nothing_to_wait_for() -> None:
    with readback.being_read(None, None, Silent()) as require_right:
        require_right()
