"""Have xl destroy, restore and create domains, with time limits that grow with their memory.

An xl that takes longer is not killed: it works on, and what it has begun cannot be undone.  Each
function raises ``CommandFailed`` and ``CommandTimedOut``.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from snapvm.process import Runner

_RESTORE_SECONDS: Final = 3600.0
_CREATE_SECONDS: Final = 600.0
_LEAST_BYTES_A_SECOND: Final = 8 << 20
"""No host is so slow in making or reading a domain's memory: an xl that takes longer hangs."""


def destroy(runner: Runner, domid: int) -> None:
    """Destroy a domain; its memory may be freed only after this returns."""
    runner.run(["xl", "destroy", str(domid)], kill=False)


def restore(runner: Runner, image: Path, *, paused: bool) -> None:
    """Start a domain from an image."""
    size_bytes = 0
    with suppress(OSError):  # xl will say what is wrong with the image
        size_bytes = image.stat().st_size
    argv = ["xl", "restore", *_flags(paused=paused), str(image)]
    runner.run(argv, timeout_seconds=_seconds(_RESTORE_SECONDS, size_bytes), kill=False)


def create(runner: Runner, config: str, *, paused: bool, memory_bytes: int) -> None:
    """Boot a domain with so much memory from a configuration file in xl's language."""
    argv = ["xl", "create", "-q", *_flags(paused=paused), config]
    runner.run(argv, timeout_seconds=_seconds(_CREATE_SECONDS, memory_bytes), kill=False)


def _seconds(least: float, size_bytes: int) -> float:
    return least + size_bytes / _LEAST_BYTES_A_SECOND


def _flags(*, paused: bool) -> list[str]:
    return ["-p"] if paused else []
