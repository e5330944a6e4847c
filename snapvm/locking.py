"""Who works on a domain: one process at a time, told to the others."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapvm import durable
from snapvm.errors import Locked


@contextmanager
def locked(path: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold the lock file of the domain ``name``; the kernel drops the lock when we die.

    Raises ``Locked`` when another process still holds it after ``wait_seconds``, and
    ``StorageFailed``.
    """
    with durable.failing_as_storage(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
    try:
        with durable.failing_as_storage(path):
            _lock(descriptor, name, wait_seconds)
        _sign(descriptor)
        yield
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Say who holds the lock; it is held without that too, and a full /run must not stop repair."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)


def _lock(descriptor: int, name: str, wait_seconds: float) -> None:
    def attempt() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
            raise Locked(domain=name, holder=holder or "it has not said which") from None

    if not wait_seconds:
        attempt()
        return
    # heavy: tenacity, which `list` never needs
    from snapvm import retry

    retry.lock(attempt, limit_seconds=wait_seconds)
