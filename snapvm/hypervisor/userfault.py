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

    What takes it back is opened before: later too many files might be open.  Raises ``OSError``
    when this kernel has no userfaultfd, or the setting cannot be changed.
    """
    durable.make_folder(folder)
    with _opened(folder / FILE) as holders, _opened(folder / _MUTEX) as mutex:
        setting = None
        try:
            with _alone(mutex), shielded():
                setting = _lend(holders, sysctl)
            yield
        finally:
            with shielded():
                if setting is not None:
                    with _closing(setting), _alone(mutex):
                        _put_back_if_last(holders, setting)


def put_back(folder: Path, sysctl: Path = SYSCTL) -> None:
    """Take back the permission of a dead snapvm; harmless when there is none or it is in use."""
    if not (folder / FILE).exists():
        return
    with _opened(folder / FILE) as holders, _opened(folder / _MUTEX) as mutex, _alone(mutex):
        if _was(holders):
            with _closing(_opened_setting(sysctl)) as setting:
                _put_back_if_last(holders, setting)


def _lend(holders: int, sysctl: Path) -> int | None:
    """Give the permission and note its use; return None when the host always gives it.

    Returns the open setting.  Nothing stays noted where it may not be changed.
    """
    noted = _was(holders)
    before = noted or sysctl.read_text().strip()
    if before == "1":
        return None
    setting = _opened_setting(sysctl)
    try:
        os.pwrite(holders, before.encode(), 0)
        os.pwrite(setting, b"1", 0)
    except OSError:
        os.ftruncate(holders, len(noted))
        os.close(setting)
        raise
    fcntl.flock(holders, fcntl.LOCK_SH)
    return setting


def _put_back_if_last(holders: int, setting: int) -> None:
    try:
        fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    before = _was(holders)
    if before:
        os.pwrite(setting, before.encode(), 0)
        os.ftruncate(holders, 0)


def _was(holders: int) -> str:
    return os.pread(holders, _LONGEST_BYTES, 0).decode(errors="replace").strip()


@contextmanager
def _alone(mutex: int) -> Iterator[None]:
    """Exclude other snapvms during the block."""
    fcntl.flock(mutex, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(mutex, fcntl.LOCK_UN)


def _opened_setting(sysctl: Path) -> int:
    return os.open(sysctl, os.O_WRONLY | os.O_CLOEXEC)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with _closing(os.open(path, flags, 0o600)) as descriptor:
        yield descriptor


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
