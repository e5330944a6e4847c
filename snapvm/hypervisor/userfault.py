"""Give QEMU the host's permission for background-snapshot, only while it is needed.

QEMU opens a userfaultfd also for faults in kernel mode, because KVM and vhost write guest memory
there.  An unprivileged QEMU may do so only while ``vm.unprivileged_userfaultfd`` is 1 (Linux,
Documentation/admin-guide/sysctl/vm.rst).  The kernel checks that when the descriptor is opened.

The former value is kept in a file while any capture needs the permission.  Each capture has a
shared lock on that file, which the kernel releases when the process dies.  The last capture, or
whoever cleans up after a dead one, puts the value back.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapvm import durable
from snapvm.interrupt import shielded

SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
FILE = "userfaultfd.was"
_MUTEX = "userfaultfd.lock"
_LONGEST_BYTES = 16


@contextmanager
def allowed(folder: Path, sysctl: Path = SYSCTL) -> Iterator[None]:
    """Give the permission for the block; ``folder`` is where locks are.

    Raises ``OSError`` when this kernel has no userfaultfd, or the setting cannot be changed.
    """
    durable.make_folder(folder)
    is_lent = False
    with _opened(folder / FILE) as holders:
        try:
            with _alone(folder), shielded():
                is_lent = _lend(holders, sysctl)
            yield
        finally:
            with shielded():
                if is_lent:
                    with _alone(folder):
                        _put_back_if_last(holders, sysctl)


def put_back(folder: Path, sysctl: Path = SYSCTL) -> None:
    """Take back the permission of a dead snapvm; harmless when there is none or it is in use."""
    if not (folder / FILE).exists():
        return
    with _opened(folder / FILE) as holders, _alone(folder):
        _put_back_if_last(holders, sysctl)


def _lend(holders: int, sysctl: Path) -> bool:
    """Give the permission and note its use; return False when the host always gives it."""
    before = _was(holders) or sysctl.read_text().strip()
    if before == "1":
        return False
    with sysctl.open("w") as setting:  # where that is not allowed, nothing may be noted
        os.pwrite(holders, before.encode(), 0)
        setting.write("1")
    fcntl.flock(holders, fcntl.LOCK_SH)
    return True


def _put_back_if_last(holders: int, sysctl: Path) -> None:
    try:
        fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    before = _was(holders)
    if before:
        sysctl.write_text(before)
        os.ftruncate(holders, 0)


def _was(holders: int) -> str:
    return os.pread(holders, _LONGEST_BYTES, 0).decode(errors="replace").strip()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Exclude other snapvms during the block."""
    with _opened(folder / _MUTEX) as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
