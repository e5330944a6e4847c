"""What a pulse guest answers, read; and whether it counts on and agrees with its disks."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

from tests.lab.host.patience import patient
from tests.lab.host.pulse import ask, console

PATIENCE_SECONDS: Final = 60
STEPS: Final = 3
"""So many steps on, what it has on its disks has been compared as often."""
_ANSWER = re.compile(r"PULSE n=(?P<n>\d+) disks=(?P<disks>[\d,-]*) state=(?P<state>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """A guest's answer: its counter in RAM, the numbers it reads from its disks, its verdict."""

    n: int
    disks: tuple[int, ...]
    state: str


def parse(answer: str) -> Pulse:
    """Read an answer; ``AssertionError`` for anything else."""
    match = _ANSWER.search(answer)
    assert match, answer
    disks = tuple(int(text) for text in match["disks"].split(",") if text)
    return Pulse(n=int(match["n"]), disks=disks, state=match["state"].strip())


def require_counting(name: str) -> int:
    """Return what a guest has counted to; it must count on, and find its disks to be its own.

    Raises ``AssertionError``, also when it says nothing for a minute.
    """
    deadline = time.monotonic() + patient(PATIENCE_SECONDS)
    first: Pulse | None = None
    said: object = "nothing"
    while time.monotonic() < deadline:
        try:
            with console(name) as fd:
                while answer := ask(fd, "?", min(deadline, time.monotonic() + patient(10))):
                    said = seen = parse(answer)
                    assert seen.state == "ok", seen
                    first = first or seen
                    if seen.n >= first.n + STEPS:
                        return seen.n
        except OSError as error:  # between two lives: try again until the end
            said = error
        time.sleep(0.1)
    raise AssertionError(f"{name} does not count: {said}")
