"""A pipe out of QEMU that a thread empties into a file, so that a running guest never waits long.

QEMU may not open the image itself: under AppArmor and SELinux it may use only files that libvirt
labelled, but an unnamed pipe has no path to be checked.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from collections.abc import Sequence
from typing import Self

from snapvm.streamfilter import StreamFilter

PIPE_BYTES = 1 << 20
"""The most an unprivileged pipe may hold (pipe(7), /proc/sys/fs/pipe-max-size)."""
_SPLICE_BYTES = 1 << 20
_GOODBYE_SECONDS = 5.0


class Drainpipe:
    """The reading end, its thread, and how it went; use as a context manager.

    ``target`` is a descriptor positioned where the stream begins; it is closed at the end.  With
    ``filter_argv`` the stream passes through that program.
    """

    def __init__(self, target: int, filter_argv: Sequence[str] = ()) -> None:
        self._file = self._target = target
        self._filter_argv = filter_argv
        self._filter: StreamFilter | None = None
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._given_up, self._give_up = os.pipe2(os.O_CLOEXEC)
        self._failure: OSError | None = None
        self.drained_bytes = 0
        self._thread = threading.Thread(target=self._run, name="drainpipe", daemon=True)

    def __enter__(self) -> Self:
        """Begin to empty the pipe; raise ``HostLacks`` when the filter cannot be run."""
        if self._filter_argv:
            inlet, outlet = os.pipe2(os.O_CLOEXEC)
            try:
                self._filter = StreamFilter(self._filter_argv, inlet, self._file)
                self._target = outlet
            finally:
                os.close(inlet)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close_writer()
        os.close(self._give_up)
        self._thread.join()
        self._end_filter_input()
        if self._filter is not None:
            self._filter.close()
        for descriptor in (self._given_up, self._reader, self._file):
            os.close(descriptor)

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
        self._thread.join(limit_seconds)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
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

    def _run(self) -> None:
        try:
            while self._has_more() and (
                moved := os.splice(self._reader, self._target, _SPLICE_BYTES)
            ):
                self.drained_bytes += moved
        except OSError as failure:
            self._failure = self._said_by_filter() or failure
            while self._has_more() and os.read(self._reader, _SPLICE_BYTES):
                pass

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
