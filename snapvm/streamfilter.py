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
        self._errors = os.memfd_create("said")
        actions = [
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, target, 1),
            (os.POSIX_SPAWN_DUP2, self._errors, 2),
        ]
        path = shutil.which(argv[0], path=environment["PATH"]) or argv[0]
        try:
            self._pid = os.posix_spawn(
                path, list(argv), environment, file_actions=actions, setsid=True
            )
        except OSError as error:  # as where a unit has all of its tasks
            os.close(self._errors)
            what = f"room for zstd to run in ({error.strerror})"
            raise HostLacks(what=what, remedy="try again when it has") from error
        self._status: int | None = None

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
            said = os.pread(self._errors, _SAID_BYTES, 0).decode(errors="replace").strip()
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
        return self._status is not None
