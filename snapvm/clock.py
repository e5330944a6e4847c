"""The stop-watch of a window: when the domain stood still, what filled that time, when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from snapvm.model import Timing, WindowPart


class WindowClock:
    """Takes the times of one `take`; parts may be measured from several threads at once."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._stopped_at: float | None = None
        self._resumed_at: float | None = None
        self._has_pause = True
        self._parts: list[tuple[str, float, float]] = []
        self._lock = threading.Lock()

    def stopped(self, at: float | None = None) -> None:
        """Note since when the domain stands still, by ``time.monotonic()``; now when left out."""
        self._stopped_at = time.monotonic() if at is None else at

    def resumed(self, at: float | None = None) -> None:
        """Note since when the domain runs again, by ``time.monotonic()``; now when left out."""
        self._resumed_at = time.monotonic() if at is None else at

    def left_standing(self) -> None:
        """Note that the domain is not going to run again: there is no pause to speak of."""
        self._has_pause = False

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block as a named part of the window."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add_part(name, begun, time.monotonic())

    def add_part(self, name: str, begun: float, ended: float) -> None:
        """Add a part measured elsewhere, both ends as ``time.monotonic()``."""
        with self._lock:
            self._parts.append((name, begun, ended))

    def timing(self) -> Timing:
        """Return what was measured; a domain that never stood still has a pause of 0 ms.

        No duration is negative: QEMU's events carry wall-clock times, and a clock that is set
        meanwhile, or a domain that somebody else resumed, must not make a record unreadable.
        """
        total_ms = (time.monotonic() - self._begun) * 1000
        origin = self._stopped_at
        pause_ms = 0.0
        if origin is None:
            origin = min((begun for _, begun, _ in self._parts), default=self._begun)
        elif self._has_pause:
            pause_ms = max(0.0, (self._resumed_at or time.monotonic()) - origin) * 1000
        parts = tuple(
            WindowPart(
                name=name,
                start_ms=round((begun - origin) * 1000, 3),
                duration_ms=round(max(0.0, ended - begun) * 1000, 3),
            )
            for name, begun, ended in sorted(self._parts, key=lambda part: part[1])
        )
        return Timing(pause_ms=round(pause_ms, 3), total_ms=round(total_ms, 3), parts=parts)


class Deadline:
    """The end of a time that several pieces of work share."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @property
    def left_seconds(self) -> float:
        """How much of it is left; 0 when it is over."""
        return max(0.0, self._at - time.monotonic())
