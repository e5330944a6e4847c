"""Points at which a test lets snapvm die, to prove that nothing is lost and nobody left paused.

Every effect has a name: what is done, and for which time in this process.  With
``SNAPVM_CRASH="before lvm lvconvert 1"`` snapvm gets SIGKILL just there, with ``:TERM`` behind it
SIGTERM; with ``SNAPVM_CRASH=list`` it writes the name of every point it passes to standard error.
Programs that snapvm starts do not see the variable, and its guard forgets it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

VARIABLE = "SNAPVM_CRASH"
LIST = "list"
PREFIX = "crash point: "

_wanted = os.environ.get(VARIABLE, "")
_passed: Counter[str] = Counter()
_lock = Lock()


def forget() -> None:
    """Have no points from now on in this process: a test kills snapvm, and not its guard."""
    global _wanted  # noqa: PLW0603 - what the environment of this process said
    _wanted = ""


@contextmanager
def around(deed: str) -> Iterator[None]:
    """Have a point before a deed and one after it, when it did not fail."""
    if not _wanted:
        yield
        return
    with _lock:
        _passed[deed] += 1
        name = f"{deed} {_passed[deed]}"
    _pass(f"before {name}")
    yield
    _pass(f"after {name}")


def _pass(point: str) -> None:
    if _wanted == LIST:
        sys.stderr.write(f"{PREFIX}{point}\n")
        sys.stderr.flush()
        return
    wanted, _, name = _wanted.partition(":")
    if point == wanted:
        os.kill(os.getpid(), signal.Signals[f"SIG{name or 'KILL'}"])
