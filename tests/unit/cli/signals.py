"""Signals that a terminal sends, when a test wants them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snapvm.model import Progress, Silent


def ctrl_c(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def left_with_ctrl_c(*, quiet: bool) -> Iterator[Progress]:
    """Show no progress, as ``progress.shown``; Ctrl-C comes when the work has ended or failed."""
    assert not quiet
    try:
        yield Silent()
    finally:
        ctrl_c()
