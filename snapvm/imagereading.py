"""How far xl or QEMU has read the memory image that it restores a domain from: neither tells.

A process that reads a file has it open, and the kernel tells how far it is (proc_pid_fdinfo(5)).
xl hands its descriptor to a helper, and libvirt hands its own to QEMU: both share one position.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from snapvm.model import Progress, Silent

_PROCESSES: Final = Path("/proc")
_LOOK_SECONDS: Final = 0.5
_FIRST_SECONDS: Final = 1.0
"""How long to look for processes that have it open already: the domain is off meanwhile."""
_POSITION: Final = "pos:"


class _Opening(NamedTuple):
    """One descriptor of another process."""

    pid: str
    number: str


@contextmanager
def shown(progress: Progress, image: Path) -> Iterator[None]:
    """Show how much of an image has been read by the process that opens it in the block.

    Where that cannot be found out nothing is shown: the block is a domain's only way back.
    """
    if isinstance(progress, Silent):
        yield
        return
    path, is_over = os.path.realpath(image), threading.Event()
    others: frozenset[_Opening] = frozenset()
    until = time.monotonic() + _FIRST_SECONDS
    with suppress(OSError):
        others = frozenset(_openings(path, lambda: time.monotonic() > until))  # a backup, say
    if time.monotonic() > until:  # anybody may have open as many files as he likes
        yield
        return
    watcher = threading.Thread(
        target=_watch, args=(progress, path, others, is_over), name="reading", daemon=True
    )
    with suppress(RuntimeError):  # there are too many threads
        watcher.start()
    try:
        yield
    finally:
        is_over.set()
        if watcher.ident is not None:
            watcher.join()


def _watch(
    progress: Progress, path: str, others: frozenset[_Opening], is_over: threading.Event
) -> None:
    reader: _Opening | None = None
    with suppress(OSError):  # who restores it says what is wrong with it
        size_bytes = os.stat(path).st_size
        while not is_over.wait(_LOOK_SECONDS):
            if reader is None:
                opened = _openings(path, is_over.is_set)
                reader = next((one for one in opened if one not in others), None)
            read_bytes = None if reader is None else _position(reader)
            if read_bytes is None:
                reader = None  # it has handed the descriptor on, or is done
            else:
                progress.advance(min(read_bytes, size_bytes), size_bytes)


def _openings(path: str, is_enough: Callable[[], bool]) -> Iterator[_Opening]:
    """Yield who has a file open, except for this process, until ``is_enough``."""
    own = str(os.getpid())
    for process in os.listdir(_PROCESSES):
        if not process.isdigit() or process == own:
            continue
        folder = _PROCESSES / process / "fd"
        with suppress(OSError):  # it has ended meanwhile
            for number in os.listdir(folder):
                if is_enough():
                    return
                with suppress(OSError):
                    if os.readlink(folder / number) == path:
                        yield _Opening(process, number)


def _position(reader: _Opening) -> int | None:
    """Return where in the file it is; None when it has closed it."""
    with suppress(OSError, ValueError):
        text = (_PROCESSES / reader.pid / "fdinfo" / reader.number).read_text()
        for line in text.splitlines():
            if line.startswith(_POSITION):
                return int(line.removeprefix(_POSITION))
    return None
