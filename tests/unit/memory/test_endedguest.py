"""The engine on a guest that ends: what is mapped of it keeps its memory from the one that follows.

A guest that rebooted while it was captured stayed down: xl makes it anew two seconds after it has
shut down, and the host had not its memory twice.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.failures import WindowBroken
from snapvm.memory import framestore, precopy
from snapvm.model import Silent
from tests.fakes.xenmachine import Machine
from tests.unit.memory.guestcapture import PLENTY, SOME, begun

CHUNK_FRAMES = 8


class Ending(Machine):
    """A guest that ends when it has been looked at so often; looks are counted."""

    looks = 0
    lasts = 1 << 30

    def types(self, mfns: memoryview) -> memoryview:
        self.looks += 1
        self.has_ended = self.looks >= self.lasts
        return super().types(mfns)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framestore, "CHUNK_FRAMES", CHUNK_FRAMES)


@pytest.mark.parametrize("budget_bytes", [PLENTY, SOME])
@pytest.mark.parametrize("is_rehearsed", [False, True])
def test_it_is_looked_at_no_more(tmp_path: Path, budget_bytes: int, is_rehearsed: bool) -> None:
    machine = Ending()
    image = begun(tmp_path / "i", machine, budget_bytes)

    def prepare() -> None:
        image.prepare(machine.shared_info, Silent())

    try:
        if is_rehearsed:
            prepare()
        machine.lasts = machine.looks + 3
        with pytest.raises(WindowBroken):
            image.rehearse(machine.shared_info()) if is_rehearsed else prepare()
    finally:
        image.close()
    assert machine.looks <= machine.lasts + framestore._MAX_THREADS
    assert not machine.open_mappings


def test_no_pass_over_what_it_was_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precopy, "LITTLE_BYTES", 0)
    machine = Machine()
    seen: list[int] = []

    class EndingIt(Silent):
        def phase(self, text: str) -> None:
            machine.has_ended = True

        def advance(self, done: int, total: int) -> None:
            seen.extend([done] if machine.has_ended else [])

    image = begun(tmp_path / "i", machine, SOME)
    with pytest.raises(WindowBroken):
        image.prepare(machine.shared_info, EndingIt())
    image.close()
    assert seen == []


def test_nothing_of_it_is_held_while_the_image_is_still_written(tmp_path: Path) -> None:
    """Its table of frames was, a page of 512, until the image was whole."""
    machine = Machine()
    image = begun(tmp_path / "i", machine)
    image.prepare(machine.shared_info, Silent())
    image.rehearse(machine.shared_info())
    image.catch(machine.standing())
    image.write(Silent())
    held = machine.open_mappings
    image.close()
    assert not held
