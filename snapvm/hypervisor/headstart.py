"""Decide how long before the pause QEMU may begin its capture, from how long it took before.

QEMU first reads a byte of each page of the guest (migration/ram.c, ram_write_tracking_prepare).
That takes longer with more memory, and the guest may run meanwhile.  But then QEMU stops the guest
itself, without waiting for anybody, and the disks would be captured at another instant.  So QEMU
begins earlier by only a part of the shortest time that the reading has taken in this run of the
domain, and not earlier at all before such times are known.  Beside a running guest the reading
takes longer, so the times measured there count as soon as there are enough of them.  The times are
only a hint: they are kept in the folder of locks, and may be lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from snapvm import durable

FILE_ENDING = ".populate"
_LONGEST_BYTES = 4096
_KEPT = 8
_KNOWN_AFTER = 2
"""So many times must be known.  The first one is often longer, as it may touch many new pages."""
_PART = 0.5
_SHORTEST_SECONDS = 0.02
"""A shorter head start gains nothing: the disks' snapshots, made meanwhile, take longer."""
_LONGEST_SECONDS = 5.0


def seconds_ahead(taken_seconds: Sequence[float]) -> float:
    """Return how long before the pause QEMU may begin; 0 when unknown, or not worth it."""
    if len(taken_seconds) < _KNOWN_AFTER:
        return 0.0
    ahead_seconds = min(taken_seconds) * _PART
    return min(ahead_seconds, _LONGEST_SECONDS) if ahead_seconds >= _SHORTEST_SECONDS else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """The times that QEMU's reading took in one run of a domain."""

    file: Path
    run: str
    """Identifies the run: another QEMU may have another size of memory."""

    def taken_seconds(self) -> tuple[float, ...]:
        """Return the noted times of this run, those beside a running guest if there are enough."""
        noted = self._noted()
        beside = tuple(seconds for seconds, was_running in noted if was_running)
        every = tuple(seconds for seconds, _ in noted)
        return beside if len(beside) >= _KNOWN_AFTER else every

    def note(self, seconds: float, *, was_running: bool) -> None:
        """Note how long the reading took, and whether the guest was running."""
        kept = [*self._noted(), (seconds, was_running)][-_KEPT:]
        fresh = durable.unfinished(self.file)
        with suppress(OSError), os.fdopen(durable.create(fresh), "w") as file:
            json.dump({"run": self.run, "taken": kept}, file)
            file.flush()
            fresh.rename(self.file)

    def _noted(self) -> tuple[tuple[float, bool], ...]:
        """Return the noted times with whether the guest was running, the last at the end."""
        try:
            noted = json.loads(durable.read(self.file, _LONGEST_BYTES))
            if noted["run"] != self.run:
                return ()
            return tuple((float(seconds), bool(beside)) for seconds, beside in noted["taken"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()
