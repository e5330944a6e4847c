"""Ctrl-C, SIGTERM and SIGHUP: turned into an error where that is safe, put off where it is not.

Ctrl-Z likewise: a snapvm that is stopped in its window would leave the domain standing still.

Python runs a signal handler between two instructions of the main thread, so an interruption may
surface anywhere.  ``watched`` makes it an ``Interrupted``; ``shielded`` puts it off to the end of
a block that has to be finished, such as resuming a domain or undoing half-made work.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from snapvm.errors import Interrupted, SnapvmError

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP = signal.SIGTSTP
_OUTPUT = signal.SIGTTOU
"""What a job in the background gets for its output, if the terminal is set so (stty tostop)."""


class _Gate:
    """The process-wide state a signal handler needs: how many shields are up, what is waiting."""

    def __init__(self) -> None:
        self.shields = 0
        self.waiting: signal.Signals | None = None
        self.unstoppable = 0
        self.is_stop_waiting = False
        self.is_decided = False
        """How the command ends is decided, by the first signal or by what it has done."""

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.is_decided:
            return
        if self.shields:
            self.waiting = signal.Signals(number)
            return
        self.is_decided = True
        raise Interrupted(signal=signal.Signals(number).name)

    def on_stop(self, _number: int, _frame: FrameType | None) -> None:
        if self.unstoppable:
            self.is_stop_waiting = True
            return
        self.is_stop_waiting = False
        os.kill(os.getpid(), signal.SIGSTOP)  # what the terminal asked for; fg(1) goes on from here

    def lower(self) -> signal.Signals | None:
        """Take one shield away; return the signal to act upon when it was the last one."""
        self.shields -= 1
        if self.shields:
            return None
        waiting, self.waiting = self.waiting, None
        self.is_decided = self.is_decided or waiting is not None
        return waiting


_gate = _Gate()


@contextmanager
def watched() -> Iterator[None]:
    """Raise ``Interrupted`` in the main thread when the first of the signals arrives inside.

    The command is given up then, and another signal, of somebody impatient, must not cut short how
    that is done, nor be told in the place of what then fails.
    Not for one that whoever started us has us ignore, as nohup(1) does with SIGHUP.
    """
    handlers = {**dict.fromkeys(_ENDS, _gate.on_signal), _STOP: _gate.on_stop}
    heeded = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handlers[number]) for number in heeded}
    before[_OUTPUT] = signal.signal(_OUTPUT, signal.SIG_IGN)
    _gate.is_decided = False
    try:
        yield
    finally:
        _gate.is_decided = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Finish the block whatever signal arrives; raise ``Interrupted`` after it, not inside.

    When the block itself fails, its error is what the caller sees, and knows of the signal: the
    work is being given up already, but there may be other work behind it.
    """
    _gate.shields += 1
    try:
        yield
    except BaseException as error:
        waiting = _gate.lower()
        if waiting is not None and isinstance(error, SnapvmError):
            error.signal_put_off = waiting.name
        raise
    waiting = _gate.lower()
    if waiting is not None:
        raise Interrupted(signal=waiting.name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Finish the block and forget a signal that arrived: for clean-up after a failure."""
    _gate.shields += 1
    try:
        yield
    finally:
        _gate.lower()


@contextmanager
def unstoppable() -> Iterator[None]:
    """Finish the block before Ctrl-Z stops the process: a domain waits for the end of it."""
    _gate.unstoppable += 1
    try:
        yield
    finally:
        _gate.unstoppable -= 1
        if _gate.is_stop_waiting and not _gate.unstoppable:
            _gate.on_stop(_STOP, None)


@contextmanager
def what_is_done_stays() -> Iterator[None]:
    """Have an interruption say so of a block that puts nothing back: it mends one after another."""
    try:
        yield
    except Interrupted as interruption:
        became = "what had been done by then stays, and nothing is half done"
        raise replace(interruption, became=became) from interruption


def nothing_is_left() -> None:
    """All is done, or given up: who interrupts what is still said would be told a lie."""
    _gate.is_decided = True


@contextmanager
def unheard() -> Iterator[None]:
    """Have signals ignored for the block, in which the end of the command is told."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(descriptor: int) -> None:
    """Wait until a descriptor has something to read, or an interruption ends the wait.

    A signal that arrives just before a read only sets a mark for Python, and the read would wait
    for a second one.  The byte that Python writes for each signal cannot be missed.
    """
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        while descriptor not in select.select([descriptor, woken], [], [])[0]:
            os.read(woken, 4096)
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(wake)
