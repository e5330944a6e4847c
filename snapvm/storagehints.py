"""What to do about storage that a program cannot use, by what the kernel says of it."""

from __future__ import annotations

import errno
import os
import shlex

_NO_ROOM = "make room there, then try again: df -h {folder}; df -i {folder}"
_HINTS = {
    os.strerror(errno.ENOSPC): _NO_ROOM,
    os.strerror(errno.EDQUOT): _NO_ROOM,
    os.strerror(errno.EROFS): "mount it writable, then try again: findmnt --target {folder}",
    os.strerror(errno.EIO): "see the kernel's log: dmesg; findmnt --target {folder}",
    os.strerror(errno.ESTALE): "its server has lost it; remount it: findmnt --target {folder}",
    os.strerror(errno.EACCES): "SELinux, AppArmor or a file server denies access: ls -dZ {folder}; "
    "findmnt --target {folder}",
    os.strerror(errno.EFBIG): "allow snapvm larger files (ulimit -f; LimitFSIZE= of its unit); "
    "findmnt --target {folder}",
    os.strerror(errno.EMFILE): "allow snapvm more open files (ulimit -n; LimitNOFILE= of its unit)",
    os.strerror(errno.ENFILE): "the host has too many open files: sysctl fs.file-nr fs.file-max",
    os.strerror(errno.ELOOP): "it is a link; put the file itself into {folder}, then try again",
    os.strerror(errno.ENOLCK): "its file system, or its server, grants no more locks: "
    "findmnt --target {folder}",
}


def of(why: str, folder: str) -> str:
    """Return what to do in a folder where the kernel says ``why``; empty where that is unknown."""
    return _HINTS.get(why, "").format(folder=shlex.quote(folder))
