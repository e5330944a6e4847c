"""Ctrl-C, SIGTERM and SIGHUP: turned into an error where that is safe, put off where it is not.

Ctrl-Z is put off likewise: a snapvm that is stopped in its window would leave the domain standing
still.

Python runs a signal handler between two instructions of the main thread, so an interruption may
surface anywhere.  ``watched`` makes it an ``Interrupted``; ``shielded`` puts it off to the end of
a block that has to be finished, such as resuming a domain or undoing half-made work.

In two places it would do harm: just behind the taking of a lock (at the end of
``Condition.__enter__``), which nobody would give back then; and where a ``with`` begins or ends,
whose other half would not be done then.  A signal that arrives there is heard a moment later.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from snapvm.errors import Interrupted, SnapvmError

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP = signal.SIGTSTP
_OUTPUT = signal.SIGTTOU
"""What a job in the background gets when it writes to a terminal that forbids it (stty tostop)."""


_MOMENT_SECONDS = 0.001
_BOOKKEEPERS = frozenset(
    {
        "concurrent.futures._base",
        "concurrent.futures.thread",
        "contextlib",
        "logging",
        "queue",
        "threading",
        __name__,
    }
)
"""Modules that are not to be interrupted unless they wait for something."""
_OF_WITH = ("__enter__", "__exit__")


class _Gate:
    """The process-wide state that the signal handlers need."""

    def __init__(self) -> None:
        self.watch: object = None
        """The block in which signals are heard, if any."""
        self.amid: tuple[int, int] | None = None
        """Where something was half done when a signal came last: which frame, and instruction."""
        self.is_to_come_again = False
        """Whether that signal is about to be sent once more."""
        self.sending = threading.Lock()
        """Held while it is sent, and while the watch ends, after which nobody would heed it."""
        self.shields = 0
        """How many blocks are under way that no signal may interrupt."""
        self.waiting: signal.Signals | None = None
        """The signal that is to be acted upon when the last of them ends."""
        self.unstoppable = 0
        """How many blocks are under way in which Ctrl-Z may not stop the process."""
        self.is_stop_waiting = False
        """Whether Ctrl-Z was typed in one of them."""
        self.is_decided = False
        """Whether it is decided how the command ends: by a signal, or by what it has done."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the main thread, now or when the last shield is lowered; only once."""
        if self.is_decided:
            return
        if self.shields:
            self.waiting = signal.Signals(number)
            return
        if self.is_to_come_again:
            return
        if frame is not None and self._is_amid(frame) and self._can_come_again(number):
            return
        self.is_decided = True
        raise Interrupted(signal=signal.Signals(number).name)

    def _is_amid(self, frame: FrameType) -> bool:
        """Tell whether the main thread is in the midst of what would be left half done.

        It is not where it waits, which is to be at the same instruction a moment later.
        """
        is_bookkeeper = frame.f_globals.get("__name__") in _BOOKKEEPERS
        is_half_done = is_bookkeeper or frame.f_code.co_name in _OF_WITH
        if not is_half_done or frame.f_code is wait_for.__code__:
            return False
        before, self.amid = self.amid, (id(frame), frame.f_lasti)
        return self.amid != before

    def _can_come_again(self, number: int) -> bool:
        """Have a signal come again in a moment; return False when there can be no thread for it."""
        watch, main = self.watch, threading.get_ident()

        def send() -> None:
            time.sleep(_MOMENT_SECONDS)
            with self.sending:
                if self.watch is watch:
                    self.is_to_come_again = False
                    signal.pthread_kill(main, number)

        self.is_to_come_again = True
        try:
            _thread.start_new_thread(send, ())  # `threading` may be what was interrupted
        except RuntimeError:
            self.is_to_come_again = False
        return self.is_to_come_again

    def on_stop(self, _number: int, _frame: FrameType | None) -> None:
        """Stop the process, as Ctrl-Z does to any other, now or when it may be stopped."""
        if self.unstoppable:
            self.is_stop_waiting = True
            return
        self.is_stop_waiting = False
        os.kill(os.getpid(), signal.SIGSTOP)  # what the terminal asked for; fg(1) goes on from here

    def lower(self) -> signal.Signals | None:
        """Lower one shield; when it was the last one, return the signal that was put off."""
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

    The command is given up then.  Another signal, of somebody impatient, does nothing: it must not
    cut the giving up short, nor be told in place of what fails meanwhile.  A signal that snapvm was
    started to ignore, as nohup(1) does with SIGHUP, stays ignored.  But SIGCHLD gets its default:
    some daemons ignore it, what they start inherits that, and then nobody learns how a program
    ended (waitpid(2), NOTES).
    """
    handlers = {**dict.fromkeys(_ENDS, _gate.on_signal), _STOP: _gate.on_stop}
    heeded = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handlers[number]) for number in heeded}
    before[_OUTPUT] = signal.signal(_OUTPUT, signal.SIG_IGN)
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _gate.is_decided, _gate.is_to_come_again, _gate.watch = False, False, object()
    try:
        yield
    finally:
        _gate.is_decided = True
        with _gate.sending:
            _gate.watch = None
        for number, handler in before.items():
            signal.signal(number, handler)
        _gate.is_decided = False


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def shielded() -> Iterator[None]:
    """Finish the block whatever signal arrives; raise ``Interrupted`` after it, not inside.

    When the block itself fails, the caller sees its error, in which the signal is noted
    (``signal_put_off``): this work is given up anyway, but other work may have followed it.
    In any other thread than the main one the block is just run: no signal interrupts it.
    """
    if not _is_main():
        yield
        return
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
    """Finish the block and forget a signal that arrived: for a commit, or cleaning up a failure."""
    if not _is_main():
        yield
        return
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
    """Have an interruption of the block say that nothing was put back.

    It is for blocks that mend one thing after another.
    """
    try:
        yield
    except Interrupted as interruption:
        became = "what was already done stays, and nothing is half done"
        raise replace(interruption, became=became) from interruption


def nothing_is_left() -> None:
    """Ignore signals from here on: all is done or given up, and there is only the outcome to tell.

    An interruption of that would say that the work was put back.
    """
    _gate.is_decided = True


@contextmanager
def unheard() -> Iterator[None]:
    """Ignore signals during the block, in which a command that has ended tells how."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(descriptor: int) -> None:
    """Wait until a descriptor has something to read, or an interruption ends the wait.

    Python runs the handler of a signal that arrives just before a blocking read only after the
    read.  The byte that it writes to a pipe for each signal at once ends ``select`` in any case.
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
