"""A pipe out of QEMU that is emptied into a file, so that a running guest never waits long.

QEMU may not open the image itself: under AppArmor and SELinux it may use only files that libvirt
labelled.  To AppArmor an unnamed pipe is none, since it has no path.  To SELinux it is one, with
the label of who made it, and QEMU may not write to it unless it gets the label of the domain's
images, as libvirt's own pipes do (libvirt, qemu_migration.c, qemuMigrationSrcToFile).

One thread empties the pipe, another writes the file, and between them is a bounded buffer.  Not
``splice``: it keeps the pipe locked as long as the file takes (Linux, iter_file_splice_write), and
a guest whose page is due would stand still for that long.
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
from contextlib import suppress
from typing import Self

from snapvm.streamfilter import StreamFilter

PIPE_BYTES = 1 << 20
"""The most an unprivileged pipe may hold (pipe(7), /proc/sys/fs/pipe-max-size)."""
CHUNK_BYTES = 1 << 20
BUFFER_CHUNKS = 32
HELD_LIMIT_SECONDS = 2.0
STALL_LIMIT_SECONDS = 5.0
"""How long, in all, the file may keep a guest waiting whose page is due."""
_USUAL_SECONDS = 0.1
"""A chunk may always take so long: disks are slower than memory, and a page waits for one chunk."""
_STALL_FORGIVEN = 0.1
"""The part of the time in which the file may stand still for ever: a disk has its moments."""
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
        """Return how many seconds are left of it; it comes back slowly."""
        now = time.monotonic()
        regained_seconds = (now - self._seen_at) * _STALL_FORGIVEN
        self._seen_at = now
        self._left_seconds = min(self._limit_seconds, self._left_seconds + regained_seconds)
        return self._left_seconds

    def use(self, seconds: float) -> None:
        """Take away what was waited beyond the usual."""
        self._left_seconds -= max(0.0, seconds - _USUAL_SECONDS)


class Drainpipe:
    """The reading end, its threads, and how it went; use as a context manager.

    ``target`` is a descriptor positioned where the stream begins; it is closed at the end.  With
    ``filter_argv`` the stream passes through that program.
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
        """Begin to empty the pipe; raise ``HostLacks`` when the filter cannot be run."""
        if self._filter_argv:
            inlet, outlet = os.pipe2(os.O_CLOEXEC)
            try:
                self._filter = StreamFilter(self._filter_argv, inlet, self._file)
                self._target = outlet
            finally:
                os.close(inlet)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End it, in bounded time: what is still in the pipe is lost, and QEMU told so at once."""
        self.close_writer()
        self.discard()
        os.close(self._give_up)
        self._emptying.join()
        for descriptor in (self._given_up, self._reader):
            os.close(descriptor)
        self._filling.join(_GOODBYE_SECONDS)
        if self._filter is not None:
            self._filter.close()
            self._filling.join(_GOODBYE_SECONDS)
        if self._filling.is_alive():
            return  # a write that hangs keeps its file: another could get a number that is free
        self._end_filter_input()
        os.close(self._file)

    def label(self, label: str) -> None:
        """Give the pipe a label of SELinux's; raises ``OSError``."""
        os.setxattr(self.writer, _SELINUX, label.encode() + b"\0")  # as libselinux writes it

    def close_writer(self) -> None:
        """Give our own writing end up: QEMU has one, and its end of writing is the stream's."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def finish(self, limit_seconds: float) -> int:
        """Wait for the end of the stream and return its length in bytes.

        Raises ``OSError`` when the file could not be written, ``TimeoutError`` when the stream
        does not end.
        """
        deadline = time.monotonic() + limit_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._failure is not None:
            raise self._failure
        if any(thread.is_alive() for thread in self._threads):
            raise TimeoutError("the stream did not end")
        self._end_filter_input()
        if self._filter is not None:
            self._filter.wait(max(1.0, deadline - time.monotonic()))
        return self.drained_bytes

    def _end_filter_input(self) -> None:
        if self._target != self._file:
            os.close(self._target)
            self._target = self._file

    @property
    def failure(self) -> OSError | None:
        """Why nothing more is written, if so; the pipe is still emptied, so that QEMU goes on."""
        return self._failure

    def hold(self) -> None:
        """Let what comes stay in the pipe until ``release``.

        Whoever fills it waits then, and leaves the processors to others.  It is emptied in any
        case when something has been in it for ``HELD_LIMIT_SECONDS``: QEMU's main loop may wait
        for a page of the guest, and we for its answer.
        """
        self._released.clear()

    def release(self) -> None:
        """Begin to empty a pipe that was held."""
        self._released.set()

    def discard(self) -> None:
        """Write nothing more: what is still coming is thrown away."""
        self._failure = self._failure or OSError("the stream was given up")
        self._released.set()

    @property
    def waiting_bytes(self) -> int:
        """How much of the stream is in the pipe."""
        answer = fcntl.ioctl(self._reader, termios.FIONREAD, bytes(4))
        return int.from_bytes(answer, sys.byteorder)

    def _empty(self) -> None:
        """The first thread: the pipe is emptied in any case, and soon."""
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
        """Let the other thread know; where that hangs, in place of what is not wanted any more."""
        try:
            self._buffer.put(_END, timeout=_USUAL_SECONDS)
        except queue.Full:
            if self._failure is not None:
                with suppress(queue.Empty):
                    self._buffer.get_nowait()
            return False
        return True

    def _hand_over(self, chunk: bytes) -> None:
        if self._failure is not None:
            return
        begun = time.monotonic()
        try:
            self._buffer.put(chunk, timeout=_USUAL_SECONDS + max(0.0, self._patience.regain()))
        except queue.Full:
            self._failure = StalledError(
                "it is written so slowly that the guest would stand still; its disk is too busy"
            )
        self._patience.use(time.monotonic() - begun)

    def _fill(self) -> None:
        """The second thread: what is in the buffer goes into the file, or nowhere once it fails."""
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
        """A filter that takes no more has ended, and said why."""
        if self._filter is not None:
            try:
                self._filter.wait(_GOODBYE_SECONDS)
            except OSError as why:
                return why
        return None

    def _has_more(self) -> bool:
        """Wait for more of the stream; tell that there is none once the pipe is given up.

        QEMU may hold its end open without ever writing to it: the end of file alone would be
        waited for without end.
        """
        readable, _, _ = select.select([self._reader, self._given_up], [], [])
        return self._given_up not in readable
