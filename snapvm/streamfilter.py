"""A compressor that a stream of bytes passes through, from one descriptor to another: ``zstd``.

Not by ``sh``, which itself reads and writes what a program says: these are gigabytes, which nobody
in Python has to touch.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from snapvm.clock import Deadline
from snapvm.process import clean_environment
from snapvm.refusals import HostLacks

_LOOK_SECONDS = 0.02
_SAID_BYTES = 2000
_KILLED_SECONDS = 5.0


def is_installed(program: str) -> bool:
    """Tell whether this host has a program where those that run it look for it."""
    return shutil.which(program, path=clean_environment()["PATH"]) is not None


class StreamFilter:
    """A running zstd, or a program that runs it; its two descriptors stay the caller's.

    Raises ``HostLacks`` when there is none, or no room for it.
    """

    def __init__(self, argv: Sequence[str], source: int, target: int) -> None:
        environment = clean_environment()
        for program in (argv[0], "zstd"):
            if not is_installed(program):
                raise HostLacks(
                    what=f"the program {program}",
                    remedy=f"install {program}, or leave --compress out",
                )
        self._argv = tuple(argv)
        self._errors, errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        actions = [
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, target, 1),
            (os.POSIX_SPAWN_DUP2, errors, 2),
        ]
        path = shutil.which(argv[0], path=environment["PATH"]) or argv[0]
        try:
            # In a group of its own a terminal's Ctrl-C does not reach it.  Not in a session, which
            # a Python that was built upon an old glibc cannot begin here, such as uv's.
            self._pid = os.posix_spawn(
                path, list(argv), environment, file_actions=actions, setpgroup=0
            )
        except OSError as error:  # as where a unit has all of its tasks
            os.close(self._errors)
            what = f"room for zstd to run in ({error.strerror})"
            raise HostLacks(what=what, remedy="try again when it has") from error
        finally:
            os.close(errors)
        self._status: int | None = None
        self._said = b""

    def wait(self, limit_seconds: float) -> None:
        """Wait for its end, which comes after that of its source.

        Raises ``OSError`` with what it said when it failed, ``TimeoutError``.
        """
        deadline = Deadline(limit_seconds)
        while not self._has_ended():
            if not deadline.left_seconds:
                raise TimeoutError(f"{self._argv[0]} did not end")
            time.sleep(_LOOK_SECONDS)
        if self._status:
            said = self._said.decode(errors="replace").strip()
            raise OSError(said or f"{' '.join(self._argv)} ended with status {self._status}")

    def close(self) -> None:
        """End it, by force when it has not ended yet; one that hangs in a write is left behind."""
        if not self._has_ended():
            os.kill(self._pid, signal.SIGKILL)
            with suppress(OSError):
                self.wait(_KILLED_SECONDS)
        os.close(self._errors)

    def _has_ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
                with suppress(BlockingIOError):  # it said nothing, and a child of it may yet
                    self._said = os.read(self._errors, _SAID_BYTES)
        return self._status is not None
