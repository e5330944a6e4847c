"""What holds for every test."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapvm.hypervisor import samepages


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heeded() -> Iterator[None]:
    """As from a terminal, though a script may have started the tests in its background."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = [number for number in signals if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def _what_stays_is_not_looked_through() -> None:
    """The collector passes over modules and tests, and so finds soon what a test has left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_merged() -> Iterator[None]:
    """Whatever the kernel on which the tests run does with the memory of its processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samepages, "RUN", Path("/nonexistent/ksm/run"))
        yield
