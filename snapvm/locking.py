"""Who works on a domain: one process at a time, told to the others.

Each host has lock files of its own, which it can always make.  Others, beside the records, exclude
other hosts that see the same folder, as far as its file system can do that: on NFS and on cluster
file systems flock(2) locks for all hosts (nfs(5), local_lock), until the host that holds it dies.
So it does on SMB (flock(2), CIFS details).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapvm import durable, hostid
from snapvm.errors import Locked

_HOLDER_LIMIT_BYTES = 100
"""How much of what a lock file says of its holder is shown."""
_HELD = (errno.EWOULDBLOCK,)
"""What flock(2) says of a lock that somebody holds."""
_HELD_BY_HOST = (*_HELD, errno.EACCES)
"""The same where other hosts may hold it: SMB's servers say that it was not granted, and Linux says
EACCES then (fs/smb/client, cifs_setlk and smb2maperror.c)."""


@contextmanager
def locked(path: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold the lock file of the domain ``name``; the kernel drops the lock when we die.

    Raises ``Locked`` when another process still holds it after ``wait_seconds``, and
    ``StorageFailed`` or ``NotAllowed``.
    """
    with durable.failing_untouched(path):
        descriptor = _opened(path)
    try:
        with durable.failing_as_storage(path):
            _lock(descriptor, name, wait_seconds)
        _sign(descriptor, f"process {os.getpid()}")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked_among_hosts(path: Path, name: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold a lock file that other hosts see, if there can be one; if not, go on without it.

    A full disk has no room for the file, and a delete must be able to make room; and not every file
    system has locks.  Raises ``Locked``.
    """
    descriptor = None
    with suppress(OSError):
        descriptor = _opened(path)
    try:
        if descriptor is not None:
            with suppress(OSError):
                _lock(descriptor, name, wait_seconds, shared=str(path))
            _sign(descriptor, f"process {os.getpid()} of host {hostid.name()}")
            with suppress(OSError):
                os.fdatasync(descriptor)  # other hosts read what is on the disk, not our cache
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(path: Path) -> int:
    """Open a lock file, which is made when it is missing; raise ``OSError``."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _sign(descriptor: int, who: str) -> None:
    """Write down who holds the lock, if there is room: a full /run must not stop a repair."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who}\n".encode(), 0)


def _lock(descriptor: int, name: str, wait_seconds: float, *, shared: str = "") -> None:
    """Lock an open file; raise ``Locked`` when another process still holds it after the wait."""

    def attempt() -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (_HELD_BY_HOST if shared else _HELD):
                raise
            holder = b""
            with suppress(OSError):  # it is held, whatever can be read of who holds it
                holder = os.pread(descriptor, _HOLDER_LIMIT_BYTES, 0)
            said = holder.decode(errors="replace").strip() or "unknown process"
            raise Locked(domain=name, holder=said, shared=shared) from None

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
