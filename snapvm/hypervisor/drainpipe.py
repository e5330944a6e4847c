"""A pipe from QEMU into a file, emptied so that a running guest never waits long.

QEMU may not open the image itself: under AppArmor and SELinux it may use only files that libvirt
has labelled.  AppArmor does not mind an unnamed pipe, because it has no path.  For SELinux a pipe
has the label of the process that made it, and QEMU may write to it only when it gets the label of
the domain's images, as libvirt's own pipes do (libvirt, qemu_migration.c, qemuMigrationSrcToFile).

One thread empties the pipe and another writes the file, with a bounded buffer between them.
``splice`` would not do: it locks the pipe for as long as the file takes (Linux,
iter_file_splice_write), and a guest whose page has to be written next would stand still meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import queue
import select
import sys
import termios
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Self

from snapvm.clock import Deadline
from snapvm.streamfilter import StreamFilter
from snapvm.workers import start

PIPE_BYTES = 1 << 20
"""The most an unprivileged pipe may hold (pipe(7), /proc/sys/fs/pipe-max-size)."""
CHUNK_BYTES = 1 << 20
BUFFER_CHUNKS = 32
HELD_LIMIT_SECONDS = 2.0
STALL_LIMIT_SECONDS = 5.0
"""How long in all the file may keep a guest waiting."""
PATIENT_LIMIT_SECONDS = 300.0
"""The same for QEMU alone, while its guest runs: a disk that others keep busy may stand still for
many seconds, and one over a slow network is slow all the time."""
_USUAL_SECONDS = 0.1
"""A wait that does not count: disks are slower than memory, and a page waits for one chunk."""
_STALL_FORGIVEN = 0.1
"""The part of the time that a file may always stand still: a disk has its moments."""
_GOODBYE_SECONDS = 5.0
_END = b""
_SELINUX = "security.selinux"


class StalledError(OSError):
    """The file takes the stream so slowly that the guest would stand still."""


class Patience:
    """How long the file may still keep QEMU waiting."""

    def __init__(self, limit_seconds: float) -> None:
        self._left_seconds = self._limit_seconds = limit_seconds
        self._seen_at = time.monotonic()

    def regain(self) -> float:
        """Let patience grow by the time that has passed, slowly; return what is left in seconds."""
        now = time.monotonic()
        regained_seconds = (now - self._seen_at) * _STALL_FORGIVEN
        self._seen_at = now
        self._left_seconds = min(self._limit_seconds, self._left_seconds + regained_seconds)
        return self._left_seconds

    def use(self, seconds: float) -> None:
        """Take away the part of a wait that is beyond the usual."""
        self._left_seconds -= max(0.0, seconds - _USUAL_SECONDS)


class Drainpipe:
    """The reading end of a pipe and its threads; use as a context manager.

    ``target`` is a descriptor positioned where the stream is to begin; it is closed at the end.
    With ``filter_argv`` the stream passes through that program.
    """

    def __init__(
        self,
        target: int,
        filter_argv: Sequence[str] = (),
        *,
        stall_limit_seconds: float = STALL_LIMIT_SECONDS,
    ) -> None:
        self._file = self._target = target
        self._filter_argv = filter_argv
        self._filter: StreamFilter | None = None
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._given_up, self._give_up = os.pipe2(os.O_CLOEXEC)
        self._failure: OSError | None = None
        self._released = threading.Event()
        self._released.set()
        self._patience = Patience(stall_limit_seconds)
        self._buffer: queue.Queue[bytes] = queue.Queue(BUFFER_CHUNKS)
        self.drained_bytes = 0
        self._emptying, self._filling = self._threads = [
            threading.Thread(target=work, name=f"drainpipe-{work.__name__}", daemon=True)
            for work in (self._empty, self._fill)
        ]

    def __enter__(self) -> Self:
        """Begin to empty the pipe; raise ``HostLacks`` when the filter or a thread cannot run."""
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            if self._filter_argv:
                self._begin_filter()
            for thread in self._threads:
                start(thread)
            undo.pop_all()
        return self

    def _begin_filter(self) -> None:
        """Have the filter stand between the stream and the file."""
        inlet, self._target = os.pipe2(os.O_CLOEXEC)
        try:
            self._filter = StreamFilter(self._filter_argv, inlet, self._file)
        finally:
            os.close(inlet)

    def __exit__(self, *_error: object) -> None:
        """End it in bounded time; what is still in the pipe is lost, and QEMU's writes fail."""
        self.close_writer()
        self.discard()
        os.close(self._give_up)
        _join(self._emptying)
        for descriptor in (self._given_up, self._reader):
            os.close(descriptor)
        _join(self._filling, _GOODBYE_SECONDS)
        if self._filter is not None:
            self._filter.close()
            _join(self._filling, _GOODBYE_SECONDS)
        if self._filling.is_alive():
            return  # the hanging write still uses the descriptor: another file must not get it
        self._end_filter_input()
        os.close(self._file)

    def label(self, label: str) -> None:
        """Give the pipe an SELinux label; raise ``OSError``."""
        os.setxattr(self.writer, _SELINUX, label.encode() + b"\0")  # as libselinux writes it

    def close_writer(self) -> None:
        """Close our writing end, so that the stream ends when QEMU closes its own."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def finish(self, limit_seconds: float) -> int:
        """Wait for the end of the stream and return its length in bytes.

        Raises ``OSError`` when the file could not be written, ``TimeoutError`` when the stream
        does not end.
        """
        deadline = Deadline(limit_seconds)
        for thread in self._threads:
            thread.join(deadline.left_seconds)
        if self._failure is not None:
            raise self._failure
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError("the stream did not end")
        self._end_filter_input()
        if self._filter is not None:
            self._filter.wait(max(1.0, deadline.left_seconds))
        return self.drained_bytes

    def _end_filter_input(self) -> None:
        if self._target != self._file:
            os.close(self._target)
            self._target = self._file

    @property
    def failure(self) -> OSError | None:
        """Why the file is not written any more, or None; the pipe is still emptied for QEMU."""
        return self._failure

    def hold(self) -> None:
        """Do not empty the pipe until ``release``.

        QEMU waits when the pipe is full, and leaves the processors to others.  After
        ``HELD_LIMIT_SECONDS`` with something in it the pipe is emptied in any case: QEMU's main
        loop may be waiting for a page of the guest, and snapvm for QEMU's answer.
        """
        self._released.clear()

    def release(self) -> None:
        """Empty the pipe again after ``hold``."""
        self._released.set()

    def discard(self) -> None:
        """Write nothing more to the file: the rest of the stream is thrown away."""
        self._failure = self._failure or OSError("the stream was given up")
        self._released.set()

    @property
    def waiting_bytes(self) -> int:
        """How much of the stream is in the pipe."""
        answer = fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    def _empty(self) -> None:
        """Empty the pipe into the buffer, whatever happens to the file: the first thread."""
        while self._has_more():
            if not self._released.wait(HELD_LIMIT_SECONDS):
                self._released.set()
            chunk = os.read(self._reader, CHUNK_BYTES)
            if not chunk:
                break
            self._hand_over(chunk)
        while not self._has_handed_end_over():
            pass

    def _has_handed_end_over(self) -> bool:
        """Put the end mark into the buffer, if there is room.

        When writing has failed, chunks are dropped to make room.
        """
        try:
            self._buffer.put(_END, timeout=_USUAL_SECONDS)
        except queue.Full:
            if self._failure is not None:
                with suppress(queue.Empty):
                    self._buffer.get_nowait()
            return False
        return True

    def wait_at_most(self, stall_limit_seconds: float) -> None:
        """Let the file keep QEMU waiting for so long in all, from now on."""
        self._patience = Patience(stall_limit_seconds)

    def _hand_over(self, chunk: bytes) -> None:
        patience: Patience | None = None
        begun = deadline = time.monotonic()
        while self._failure is None:
            if patience is not self._patience:  # the guest may wait from now on
                patience, begun = self._patience, time.monotonic()
                deadline = begun + _USUAL_SECONDS + max(0.0, patience.regain())
            left_seconds = max(0.0, deadline - time.monotonic())
            try:
                self._buffer.put(chunk, timeout=min(_USUAL_SECONDS, left_seconds))
                break
            except queue.Full:
                if time.monotonic() >= deadline and patience is self._patience:
                    self._failure = self._stalled()
        if patience is not None:
            patience.use(time.monotonic() - begun)

    def _stalled(self) -> StalledError:
        why = "its disk is too busy"
        if self._filter_argv:
            why += ", or the compression takes too long: take with a lower level of --compress"
        return StalledError(f"it is written so slowly that the guest would stand still; {why}")

    def _fill(self) -> None:
        """Write the buffer to the file, or drop it once that has failed: the second thread."""
        while chunk := self._buffer.get():
            if self._failure is None:
                self._write(chunk)

    def _write(self, chunk: bytes) -> None:
        try:
            rest = memoryview(chunk)
            while rest:
                written = os.write(self._target, rest)
                rest = rest[written:]
            self.drained_bytes += len(chunk)
        except OSError as failure:
            if self._failure is None:
                self._failure = self._said_by_filter() or failure

    def _said_by_filter(self) -> OSError | None:
        """Return why the filter has ended; None when it does not say."""
        if self._filter is not None:
            try:
                self._filter.wait(_GOODBYE_SECONDS)
            except OSError as why:
                return why
        return None

    def _has_more(self) -> bool:
        """Wait for more of the stream; return False once the pipe is given up.

        QEMU may hold its end open without ever writing to it, so that the end of file never comes.
        """
        readable, _, _ = select.select([self._reader, self._given_up], [], [])
        return self._given_up not in readable


def _join(thread: threading.Thread, limit_seconds: float | None = None) -> None:
    """Wait for a thread that may not have been started."""
    if thread.ident is not None:
        thread.join(limit_seconds)
