"""Files that are only in memory, for what has to be given to a program as a file."""

from __future__ import annotations

import ctypes
import os

_CLOSED_BY_EXEC = 1
"""MFD_CLOEXEC (memfd_create(2))."""


def made(name: str) -> int:
    """Make a file in memory and return its descriptor, for reading and writing; raise ``OSError``.

    By the C function: a Python that was built upon an old glibc, as uv's were, has no other.
    """
    descriptor = int(
        ctypes.CDLL(None, use_errno=True).memfd_create(os.fsencode(name), _CLOSED_BY_EXEC)
    )
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor
