"""The host's permission that background-snapshot needs, given only while it is needed.

QEMU opens userfaultfd for faults in kernel mode too, since KVM and vhost write guest memory there;
an unprivileged QEMU may do so only while ``vm.unprivileged_userfaultfd`` is 1 (Linux,
Documentation/admin-guide/sysctl/vm.rst).  The kernel looks at that when the descriptor is opened,
and not afterwards.

What the setting was before is kept in a file for as long as a capture needs it.  Several captures
may: each has a shared lock on the file, which the kernel drops when its holder dies.  The last one,
or whoever cleans up after a dead one, puts the setting back.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapvm import durable

SYSCTL = Path("/proc/sys/vm/unprivileged_userfaultfd")
FILE = "userfaultfd.was"
_MUTEX = "userfaultfd.lock"
_LONGEST_BYTES = 16


@contextmanager
def allowed(folder: Path, sysctl: Path = SYSCTL) -> Iterator[None]:
    """Allow it for the block; ``folder`` is where locks are.

    Raises ``OSError`` when this kernel has no userfaultfd, or it cannot be allowed.
    """
    durable.make_folder(folder)
    with _opened(folder / FILE) as holders:
        with _alone(folder):
            is_lent = _lend(holders, sysctl)
        try:
            yield
        finally:
            if is_lent:
                with _alone(folder):
                    _put_back_if_last(holders, sysctl)


def put_back(folder: Path, sysctl: Path = SYSCTL) -> None:
    """Take back what a dead process was allowed; harmless when nobody died, or others need it."""
    if not (folder / FILE).exists():
        return
    with _opened(folder / FILE) as holders, _alone(folder):
        _put_back_if_last(holders, sysctl)


def _lend(holders: int, sysctl: Path) -> bool:
    """Allow it and note who needs it; False when the host allows it to everybody anyway."""
    before = _was(holders) or sysctl.read_text().strip()
    if before == "1":
        return False
    os.pwrite(holders, before.encode(), 0)
    sysctl.write_text("1")
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
    """Keep others out of the few steps that belong together."""
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
