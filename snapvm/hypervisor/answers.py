"""Looking at files that may be on a server that is gone, or on a disk that does not answer.

The kernel lets whoever looks at such a file wait for as long as it takes, which no signal but a
killing one ends.  So it is done in threads that are left to themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from snapvm.errors import SnapvmError

T = TypeVar("T")

LIMIT_SECONDS = 10.0
"""A disk that has to spin up answers in less, and so does a server that is only busy."""


def within(limit_seconds: float, ask: Callable[[], T]) -> T:
    """Return what ``ask`` does, or raise the ``SnapvmError`` that it raises.

    Raises ``TimeoutError`` when it takes longer; it may go on then, and nobody waits for it.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except SnapvmError as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="asking a file", daemon=True).start()
    return answer.result(timeout=limit_seconds)


def asked(look: Callable[[Path], T], paths: Iterable[Path]) -> Mapping[Path, T]:
    """Return what ``look`` says of each path; one that does not answer in time is left out.

    All are asked at once, and ``look`` raises nothing.
    """
    found: dict[Path, T] = {}

    def ask(path: Path) -> None:
        found[path] = look(path)

    threads = [
        threading.Thread(target=ask, args=(path,), name="asking a file", daemon=True)
        for path in dict.fromkeys(paths)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)
