"""How far ahead of a pause QEMU begins with its capture: by what its captures took before.

QEMU first reads a byte of each of the guest's pages (migration/ram.c, ram_write_tracking_prepare),
which takes the longer the more memory there is, and needs no guest that stands still.  But it waits
for nobody afterwards: it stops the guest itself, and that instant would not be the disks'.  So it
begins ahead by a part of the shortest time that it has needed in this run of the domain, and not at
all before that is known.  Beside a guest that runs it needs longer, so what it needed there counts
as soon as it is known.  All this is a hint: it is kept where locks are, and may be lost.
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
"""The first capture of a run may be the first to touch many of the pages: slower than any after."""
_PART = 0.5
_SHORTEST_SECONDS = 0.02
"""Less would gain nothing: the snapshots of the disks, which are made beside it, take longer."""
_LONGEST_SECONDS = 5.0


def seconds_ahead(taken_seconds: Sequence[float]) -> float:
    """Return how far ahead it is safe to begin; 0 when it is not known, or not worth it."""
    if len(taken_seconds) < _KNOWN_AFTER:
        return 0.0
    ahead_seconds = min(taken_seconds) * _PART
    return min(ahead_seconds, _LONGEST_SECONDS) if ahead_seconds >= _SHORTEST_SECONDS else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """How long QEMU's reading took in one run of a domain."""

    file: Path
    run: str
    """Which run it is: another QEMU may have another memory."""

    def taken_seconds(self) -> tuple[float, ...]:
        """Return what was noted; nothing when it is of another run."""
        noted = self._noted()
        beside = tuple(seconds for seconds, was_running in noted if was_running)
        every = tuple(seconds for seconds, _ in noted)
        return beside if len(beside) >= _KNOWN_AFTER else every

    def note(self, seconds: float, *, was_running: bool) -> None:
        """Remember how long it took this time, and whether the guest was running."""
        kept = [*self._noted(), (seconds, was_running)][-_KEPT:]
        fresh = self.file.with_name(f".{self.file.name}.new")
        with suppress(OSError), os.fdopen(durable.create(fresh), "w") as file:
            json.dump({"run": self.run, "taken": kept}, file)
            file.flush()
            fresh.rename(self.file)

    def _noted(self) -> tuple[tuple[float, bool], ...]:
        """Return what can be read, the last at the end."""
        try:
            noted = json.loads(durable.read(self.file, _LONGEST_BYTES))
            if noted["run"] != self.run:
                return ()
            return tuple((float(seconds), bool(beside)) for seconds, beside in noted["taken"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()
