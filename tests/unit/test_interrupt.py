"""A signal that is put off comes again while somebody heeds it, or not at all."""

from __future__ import annotations

import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.errors import Interrupted
from snapvm.interrupt import shielded, watched
from snapvm.undo import Undo

MOMENT_SECONDS = 0.2
AMID: Any = SimpleNamespace(
    f_globals={"__name__": "threading"}, f_code=SimpleNamespace(co_name="acquire"), f_lasti=0
)
"""A frame of the standard library in which a signal is put off."""


def test_one_that_comes_again_does_not_come_when_the_command_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was a traceback of Python's own: nobody heeded it any more."""
    is_about_to, came = threading.Event(), []
    kill = signal.pthread_kill

    def late(thread: int, number: int) -> None:
        is_about_to.set()
        time.sleep(MOMENT_SECONDS)  # the command ends
        kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", late)
    before = signal.signal(signal.SIGINT, lambda *_: came.append("outside"))
    try:
        with watched():
            handler: Any = signal.getsignal(signal.SIGINT)
            handler(signal.SIGINT, AMID)
            assert is_about_to.wait(30)
        time.sleep(2 * MOMENT_SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not came


def test_one_that_comes_when_all_was_put_back_is_not_told_in_place_of_the_failure() -> None:
    """Its message says that the work was given up for it; and a script looks at the status."""

    def fail() -> None:
        try:
            with Undo():
                raise ZeroDivisionError
        finally:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(ZeroDivisionError), watched():
        fail()


def test_one_that_was_put_off_is_the_only_one() -> None:
    """What is put back for it is not cut short by somebody impatient."""
    put_back: list[str] = []

    def work() -> None:
        try:
            with shielded():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            put_back.append("all")

    with pytest.raises(Interrupted) as interrupted, watched():
        work()
    assert interrupted.value.signal == "SIGINT" and put_back == ["all"]
