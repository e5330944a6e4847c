"""A host that has no room for one more thread."""

from __future__ import annotations

import threading

import pytest


def start_fewer_than(nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ``nth`` thread from now on, and all behind it, not start."""
    start = threading.Thread.start
    asked: list[threading.Thread] = []

    def start_some(thread: threading.Thread) -> None:
        asked.append(thread)
        if len(asked) >= nth:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
