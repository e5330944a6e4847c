"""Files that fail: the n-th operation of snapvm on any of them ends with an errno of its kind."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import snapvm
from tests.fakes.storage import path_of

_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.EIO, errno.ESTALE)
_MANY = (errno.EMFILE, errno.ENFILE)
_CHANGE = (*_FULL, *_GONE, errno.EROFS, errno.EACCES)
_LOOK = (*_GONE, errno.EACCES)
_DATA = (*_FULL, *_GONE)

ERRORS: dict[str, tuple[int, ...]] = {
    "open": (*_LOOK, *_MANY),
    "create": (*_CHANGE, *_MANY),
    "write": _DATA,
    "pwrite": _DATA,
    "pwritev": _DATA,
    "fchown": _CHANGE,
    "fchmod": _CHANGE,
    "ftruncate": _DATA,
    "fsync": _DATA,
    "fdatasync": _DATA,
    "posix_fadvise": _GONE,
    "rename": _CHANGE,
    "replace": _CHANGE,
    "unlink": _CHANGE,
    "mkdir": _CHANGE,
    "rmdir": _CHANGE,
    "link": _CHANGE,
    "stat": _LOOK,
    "lstat": _LOOK,
    "fstat": _GONE,
    "statvfs": _LOOK,
    "listdir": (*_LOOK, *_MANY),
    "scandir": (*_LOOK, *_MANY),
    "readlink": _LOOK,
    "read": _GONE,
    "pread": _GONE,
    "preadv": _GONE,
    "lseek": _GONE,
    "flock": (errno.ENOLCK, errno.EIO),
    "pipe2": _MANY,
}
"""The operations, and what each may fail with; ``create`` is an open that makes a file."""

_CALLS = [name for name in ERRORS if name not in ("create", "flock")]
_OURS = str(Path(snapvm.__file__).parent)
_TESTS = str(Path(__file__).parents[1])


@dataclass(frozen=True)
class Place:
    """An operation: which, and from where in snapvm it is called."""

    name: str
    where: str
    path: str


@dataclass
class Faults:
    """What was seen of operations, and which is to fail."""

    number: int
    error: Callable[[Place], int] | None
    lasts: bool
    seen: list[Place] = field(default_factory=list)
    struck: list[Place] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pass_(self, name: str, path: str, called: object = None) -> None:
        """Note an operation; raise when it is the one that fails.

        The failure has the name that the file was called by, which may be one in a folder.
        """
        where = caller(sys._getframe(2))
        if not where:
            return
        place = Place(name, where, path)
        with self.lock:
            self.seen.append(place)
            count = len(self.seen)
            is_due = count >= self.number if self.lasts else count == self.number
            if self.error is None or not is_due:
                return
            code = self.error(place)
            if not code:
                return
            self.struck.append(place)
        raise OSError(code, os.strerror(code), called)


def caller(frame: FrameType | None) -> str:
    """Return from where in snapvm an operation is called; empty when somebody else calls it."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OURS):
            return f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
        if file.startswith(_TESTS):
            return ""
        frame = frame.f_back
    return ""


@contextmanager
def failing_at(
    number: int, error: Callable[[Place], int] | None = None, *, lasts: bool = False
) -> Iterator[Faults]:
    """Let the n-th operation on a file fail, or all from there on; yields what was seen."""
    faults = Faults(number, error, lasts)
    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, _patched(faults, name, getattr(os, name)))
        patch.setattr(fcntl, "flock", _patched(faults, "flock", fcntl.flock))
        opened = _opened(faults, io.open)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        yield faults


def _patched(faults: Faults, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(*of: Any, **named: Any) -> Any:
        what = name
        if name == "open" and of[1] & os.O_CREAT:
            what = "create"
        faults.pass_(what, _path(of, named.get("dir_fd")), of[0] if of else None)
        return call(*of, **named)

    return called


def _opened(faults: Faults, call: Callable[..., Any]) -> Callable[..., Any]:
    def called(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        is_new = not isinstance(file, int) and "opener" not in named
        if is_new:
            faults.pass_("open" if "r" in mode else "create", path_of(file, None), file)
        opened = call(file, mode, *rest, **named)
        path = path_of(file, None)
        if "r" not in mode or "+" in mode:
            write = opened.write

            def writing(data: Any) -> Any:
                faults.pass_("write", path)
                return write(data)

            opened.write = writing
        else:
            read = opened.read

            def reading(*of: Any) -> Any:
                faults.pass_("read", path)
                return read(*of)

            opened.read = reading
        return opened

    return called


def _path(of: tuple[Any, ...], folder: int | None) -> str:
    is_of_file = bool(of) and isinstance(of[0], int | str | os.PathLike)
    return path_of(of[0], folder) if is_of_file else ""
