"""Who works on a domain: one process at a time, told to the others.

Each host has its own lock files, which are always to be had.  Others beside the records exclude
other hosts that see the same folder, as far as its file system can: NFS and those of clusters make
of flock(2) a lock of all hosts (nfs(5), local_lock), which goes with the host that holds it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapvm import durable, hostid
from snapvm.errors import Locked


@contextmanager
def locked(path: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold the lock file of the domain ``name``; the kernel drops the lock when we die.

    Raises ``Locked`` when another process still holds it after ``wait_seconds``, and
    ``StorageFailed`` or ``NotAllowed``.
    """
    with durable.failing_untouched(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    try:
        with durable.failing_as_storage(path):
            _lock(descriptor, name, wait_seconds)
        _sign(descriptor, f"process {os.getpid()}")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def shared(path: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold a lock file that other hosts see; without one where there can be none.

    A delete may be what makes room for it, and not every file system has locks.  Raises ``Locked``.
    """
    descriptor = -1
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if descriptor >= 0:
            with suppress(OSError):
                _lock(descriptor, name, wait_seconds, shared=str(path))
            _sign(descriptor, f"process {os.getpid()} of host {hostid.name()}")
            with suppress(OSError):
                os.fdatasync(descriptor)  # what only this host's cache has nobody else reads
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _sign(descriptor: int, who: str) -> None:
    """Say who holds the lock; it is held without that too, and a full /run must not stop repair."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who}\n".encode(), 0)


def _lock(descriptor: int, name: str, wait_seconds: float, *, shared: str = "") -> None:
    def attempt() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise Locked(
                domain=name, holder=holder or "it has not said which", shared=shared
            ) from None

    if not wait_seconds:
        attempt()
        return
    # heavy: tenacity, which `list` never needs
    from snapvm import retry

    try:
        retry.lock(attempt, limit_seconds=wait_seconds)
    except Locked as busy:
        busy.was_waited_for = True
        raise
