"""Whose lab runs: one at a time on this host and account, first come, first served.

The one who runs holds ``running.lock``.  Who waits holds a ticket in ``queue``, a file named by
when it came and locked as long as its process lives: the ticket of a dead one counts for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from tests.lab.errors import LabError
from tests.lab.image import cache_folder, say

TURN_SECONDS: Final = 3600
"""How long to wait for the labs of other processes to end."""
_LOOK_SECONDS: Final = 0.5


def wait_for_turn(limit_seconds: float = TURN_SECONDS, folder: Path | None = None) -> IO[str]:
    """Return the lock that lets one lab run; to close it ends the turn.

    Raises ``LabError`` when those before are not done within ``limit_seconds``.
    """
    folder = folder or cache_folder()
    deadline = time.monotonic() + limit_seconds
    told = False
    with _ticket(folder / "queue") as ticket:
        while True:
            if not _is_behind(ticket) and (lock := _locked(folder / "running.lock")):
                return lock
            if not told:
                say("another lab is running on this host; waiting for it to end")
                told = True
            if time.monotonic() > deadline:
                raise LabError(f"other labs have been running for {limit_seconds:.0f} s")
            time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def _ticket(queue: Path) -> Iterator[Path]:
    queue.mkdir(parents=True, exist_ok=True)
    path = queue / f"{time.time_ns():020}-{os.getpid()}"
    # Locked before it has its name: no other may take it for one of the dead.
    with path.with_suffix(".new").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        path.with_suffix(".new").rename(path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _is_behind(ticket: Path) -> bool:
    """Tell whether somebody living came before; sweep away the tickets of the dead."""
    for other in sorted(ticket.parent.glob("*[0-9]")):
        if other.name >= ticket.name:
            break
        with contextlib.suppress(FileNotFoundError):
            lock = _locked(other, "r")
            if lock is None:
                return True
            other.unlink(missing_ok=True)
            lock.close()
    return False


def _locked(path: Path, mode: str = "w") -> IO[str] | None:
    file = path.open(mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
