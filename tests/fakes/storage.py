"""Storage that has no room, or does not answer: what such a file system does, without one."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapvm.hypervisor import answers


@contextmanager
def no_room() -> Iterator[None]:
    """Let no byte be written to any file in the block: the kernel refuses it (setrlimit(2))."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def unanswered(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[None]:
    """Let whoever looks at a path wait until the block ends, as for a server that is down."""
    is_over = threading.Event()
    monkeypatch.setattr(answers, "LIMIT_SECONDS", 0.1)
    for name in ("open", "stat"):
        call = getattr(os, name)

        def waiting(of: Any, *rest: Any, call: Any = call, **named: Any) -> Any:
            if not isinstance(of, int) and os.fspath(of) == str(path):
                assert is_over.wait(20), "it was waited for"
            return call(of, *rest, **named)

        monkeypatch.setattr(os, name, waiting)
    try:
        yield
    finally:
        is_over.set()


@contextmanager
def read_on_nfs(file: Path) -> Iterator[None]:
    """Have a file open in the block, as NFS has it: removed it gets another name until the end."""
    kept: list[Path] = []
    unlink = os.unlink

    def keeping(path: Any, *, dir_fd: int | None = None) -> None:
        where = Path(path_of(path, dir_fd))
        if where in kept:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        if where.name != file.name:
            unlink(path, dir_fd=dir_fd)
            return
        kept.append(where.with_name(f".nfs{len(kept):08x}"))
        where.rename(kept[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", keeping)
        yield
    for each in kept:
        each.unlink()


CHANGES = ("open", "fsync", "rename", "unlink", "mkdir", "rmdir", "link")
"""The calls by which a folder and what is in it change, or come to the disk."""
_GROWING = ("open", "fsync", "mkdir", "link")
"""Those that need room."""


@contextmanager
def failing(folder: Path, number: int, error: int, *, lasts: bool) -> Iterator[Callable[[], int]]:
    """Let the n-th change below a folder fail, or all from there on, as a disk has them fail.

    That is with one of ``ENOSPC``, ``EIO`` and ``EROFS``.  Yields what tells how many there were.
    """
    seen = 0
    lock = threading.Lock()

    def strike(name: str, path: str) -> None:
        nonlocal seen
        if not path.startswith(f"{folder}/") or (error == errno.ENOSPC and name not in _GROWING):
            return
        with lock:
            seen += 1
            is_due = seen >= number if lasts else seen == number
        # What a cache holds is synced without a write where nothing may be written.
        if is_due and not (error == errno.EROFS and name == "fsync"):
            raise OSError(error, os.strerror(error), path)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            call = getattr(os, name)

            def changing(of: Any, *rest: Any, name: str = name, call: Any = call, **kw: Any) -> Any:
                is_change = name != "open" or bool(rest[0] & os.O_CREAT)
                if is_change:
                    strike(name, path_of(of, kw.get("dir_fd")))
                return call(of, *rest, **kw)

            patch.setattr(os, name, changing)
        yield lambda: seen


def path_of(of: Any, folder: int | None) -> str:
    """Return the path that a call is about: of a descriptor, or of a name in a folder's."""
    if isinstance(of, int):
        return os.readlink(f"/proc/self/fd/{of}")
    above = "" if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.join(above, os.fspath(of))
