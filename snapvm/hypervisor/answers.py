"""Look at files that may be on a server that is gone, or on a disk that does not answer.

The kernel may keep a process that looks at such a file waiting for ever, and only a signal that
kills it ends that.  So such files are looked at in threads, and nobody waits for a late thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from snapvm.clock import Deadline
from snapvm.errors import SnapvmError
from snapvm.workers import start

T = TypeVar("T")

LIMIT_SECONDS = 10.0
"""A disk that has to spin up, or a server that is only busy, answers in less."""
_AT_ONCE = 32
"""So many files are looked at beside each other: each look may need a descriptor and a thread."""
_TURN_SECONDS = 0.01
"""How long the next look waits for one of them to end; those that hang must not hold it up."""


def within(limit_seconds: float, ask: Callable[[], T]) -> T:
    """Call ``ask`` in a thread; return what it returns, or raise the ``SnapvmError`` it raises.

    Raises ``TimeoutError`` when it takes longer; the thread may go on, and nobody waits for it.
    Raises ``HostLacks`` when there can be no thread.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except SnapvmError as error:
            answer.set_exception(error)

    start(threading.Thread(target=run, name="asking a file", daemon=True))
    return answer.result(timeout=limit_seconds)


def asked(look: Callable[[Path], T], paths: Iterable[Path]) -> Mapping[Path, T]:
    """Call ``look`` for many paths at once; leave out a path that does not answer in time.

    ``look`` must not raise anything.  Raises ``HostLacks`` when there can be no thread.
    """
    found: dict[Path, T] = {}
    turns = threading.Semaphore(_AT_ONCE)

    def ask(path: Path, *, has_turn: bool) -> None:
        found[path] = look(path)
        if has_turn:
            turns.release()

    threads = []
    for path in dict.fromkeys(paths):
        ask_one = partial(ask, path, has_turn=turns.acquire(timeout=_TURN_SECONDS))
        threads.append(threading.Thread(target=ask_one, name="asking a file", daemon=True))
        start(threads[-1])
    deadline = Deadline(LIMIT_SECONDS)
    for thread in threads:
        thread.join(deadline.left_seconds)
    return dict(found)
