"""Storage that has no room, or does not answer: what such a file system does, without one."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapvm.hypervisor import answers


@contextmanager
def no_room() -> Iterator[None]:
    """Let no byte be written to any file in the block: the kernel refuses it (setrlimit(2))."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def unanswered(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[None]:
    """Let whoever looks at a path wait until the block ends, as for a server that is down."""
    is_over = threading.Event()
    monkeypatch.setattr(answers, "LIMIT_SECONDS", 0.1)
    for name in ("open", "stat"):
        call = getattr(os, name)

        def waiting(of: Any, *rest: Any, call: Any = call, **named: Any) -> Any:
            if not isinstance(of, int) and os.fspath(of) == str(path):
                assert is_over.wait(20), "it was waited for"
            return call(of, *rest, **named)

        monkeypatch.setattr(os, name, waiting)
    try:
        yield
    finally:
        is_over.set()
