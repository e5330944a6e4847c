"""A pipe out of QEMU that a thread empties into a file, so that a running guest never waits long.

QEMU may not open the image itself: under AppArmor and SELinux it may use only files that libvirt
labelled, but an unnamed pipe has no path to be checked.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from typing import Self

PIPE_BYTES = 1 << 20
"""The most an unprivileged pipe may hold (pipe(7), /proc/sys/fs/pipe-max-size)."""
_SPLICE_BYTES = 1 << 20


class Drainpipe:
    """The reading end, its thread, and how it went; use as a context manager.

    ``target`` is a descriptor positioned where the stream begins; it is closed at the end.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._given_up, self._give_up = os.pipe2(os.O_CLOEXEC)
        self._failure: OSError | None = None
        self.drained_bytes = 0
        self._thread = threading.Thread(target=self._run, name="drainpipe", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close_writer()
        os.close(self._give_up)
        self._thread.join()
        for descriptor in (self._given_up, self._reader, self._target):
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
        self._thread.join(limit_seconds)
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise TimeoutError("the stream did not end")
        return self.drained_bytes

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
            self._failure = failure
            while self._has_more() and os.read(self._reader, _SPLICE_BYTES):
                pass

    def _has_more(self) -> bool:
        """Wait for more of the stream; tell that there is none once the pipe is given up.

        QEMU may hold its end open without ever writing to it: the end of file alone would be
        waited for without end.
        """
        readable, _, _ = select.select([self._reader, self._given_up], [], [])
        return self._given_up not in readable
