"""Ctrl-Z stops snapvm as it stops any command, but not while a domain waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snapvm.interrupt import unstoppable, watched

LAST = b"z"


@contextmanager
def child(deed: Callable[[Callable[[bytes], None]], None]) -> Iterator[tuple[int, int]]:
    """Have a process of its own do something; yield it, and the pipe it tells through."""
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(20)
            with watched():
                deed(lambda word: (os.write(tell, word), None)[1])
            status = 0
        finally:
            os._exit(status)
    os.close(tell)
    yield pid, hear
    os.close(hear)


def stopped(pid: int) -> bool:
    """Wait until a child stops or ends; tell which."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    return os.WIFSTOPPED(status)


def ends_well(pid: int) -> bool:
    os.kill(pid, signal.SIGCONT)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def press_ctrl_z() -> None:
    os.kill(os.getpid(), signal.SIGTSTP)


def test_it_stops_and_goes_on() -> None:
    def deed(tell: Callable[[bytes], None]) -> None:
        tell(b"a")
        press_ctrl_z()
        tell(LAST)

    with child(deed) as (pid, hear):
        assert stopped(pid)
        assert os.read(hear, 9) == b"a"
        assert ends_well(pid)
        assert os.read(hear, 9) == LAST


def test_in_a_window_it_is_put_off_to_the_end_and_done_once() -> None:
    def deed(tell: Callable[[bytes], None]) -> None:
        with unstoppable():
            with unstoppable():
                press_ctrl_z()
                tell(b"a")
            press_ctrl_z()
            tell(b"b")
        with unstoppable():
            tell(LAST)

    with child(deed) as (pid, hear):
        assert stopped(pid)
        assert os.read(hear, 9) == b"ab"
        assert ends_well(pid)
        assert os.read(hear, 9) == LAST


def test_one_that_is_to_ignore_it_does() -> None:
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        with child(lambda _: press_ctrl_z()) as (pid, _):
            assert not stopped(pid)
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


def test_a_terminal_that_stops_whoever_writes_in_the_background_does_not_stop_it() -> None:
    with child(lambda _: os.kill(os.getpid(), signal.SIGTTOU)) as (pid, _):
        assert not stopped(pid)
