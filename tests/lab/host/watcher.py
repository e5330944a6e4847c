"""What ``running.py`` says of a domain, kept: when it stood still, and when it ran again."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

STANDS: Final = "stands"
RUNS: Final = "runs"
OFF: Final = "off"
LATE_SECONDS: Final = 0.3
"""How much later than the deed an event may be told."""


class Watcher:
    """Watches one domain in a process beside this one."""

    def __init__(self, name: str) -> None:
        argv = [sys.executable, "-m", "tests.lab.host.running", name]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        first = self._pipe.readline()  # it says what it begins with when it stands watch
        self._pending = b""
        self._story = Story([_event(first)])
        os.set_blocking(self._pipe.fileno(), False)

    def story(self) -> Story:
        """Return all that was told since it was last forgotten."""
        with suppress(BlockingIOError):
            while data := os.read(self._pipe.fileno(), 65536):
                *lines, self._pending = (self._pending + data).split(b"\n")
                self._story.events += map(_event, lines)
        return self._story

    def forget(self) -> None:
        """Forget what was, but for the state."""
        del self.story().events[:-1]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@dataclass
class Story:
    """What a domain did: times (``time.time()``) and what it did from then on."""

    events: list[tuple[float, str]]

    @property
    def state(self) -> str:
        """What it does now."""
        return self.events[-1][1]

    def stood_at(self, moment: float) -> bool:
        """Tell whether the domain stood still at a moment."""
        return self._standing(moment) is not None

    def ran_after_ms(self, moment: float) -> float | None:
        """Return how long after a moment at which it stood still it ran again, if it did."""
        since = self._standing(moment)
        later = self.events[since + 1 :] if since is not None else []
        times = [at for at, state in later if state == RUNS]
        return (times[0] - moment) * 1000 if times else None

    def _standing(self, moment: float) -> int | None:
        """Return which event says that it stood still then."""
        last = None
        for number, (at, state) in enumerate(self.events):
            if state == STANDS and at < moment + LATE_SECONDS:
                last = number
            elif at < moment or (state == OFF and at < moment + LATE_SECONDS):
                last = None
        return last


def _event(line: bytes) -> tuple[float, str]:
    at, state = line.decode().split()
    return float(at), state
