"""Put the memory of a guest into transparent huge pages again, which its capture has split.

QEMU lets the guest write a page of 4 KiB as soon as that page is in the stream, and for that the
kernel splits the huge page it is in (Linux, mm/mprotect.c, change_pmd_range).  So after a capture
all memory is in small pages: the guest is slower, and in the pause of the next capture there are
512 times as many entries to protect.  The kernel's own khugepaged needs hours for a large guest: it
looks at 16 MiB every ten seconds (Linux, Documentation/admin-guide/mm/transhuge.rst).

``process_madvise`` with ``MADV_COLLAPSE`` (Linux 6.1, root) does it at once, while the guest runs.
Only what is wholly there is joined, so that the guest needs no more of the host's memory than
before: what is empty, swapped out, or shared with another process or by KSM stays as it is.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from snapvm.clock import Deadline
from snapvm.hypervisor import smaps
from snapvm.hypervisor.smaps import Mapping

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
LEFT_TO_KERNEL_BYTES = 512 << 20
"""khugepaged joins as much by itself in some five minutes."""
_PIDFD_OPEN, _PROCESS_MADVISE = 434, 440
"""The same numbers on all architectures that have libvirt (Linux, scripts/syscall.tbl).

The first one, too: ``os.pidfd_open`` is missing from a Python that was built upon the headers of an
old kernel, as those are that uv installed until July 2026 (python-build-standalone).
"""
_MADV_COLLAPSE = 25
_OWN_PAGE = b"\x81"
"""The state of a page (``smaps.page_states``): present, mapped only here, neither in a file nor
protected."""
_SLICE_BYTES = 128 << 20
"""So much is asked for at once: a signal is heard in between."""
_PASSING = (errno.EAGAIN, errno.EINVAL)
"""Why a piece is left out, and others may do: pages that are in use just now, or are gone."""


class _Range(ctypes.Structure):
    """struct iovec (readv(2))."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def join(pid: int, deadline: Deadline, left_bytes: int = LEFT_TO_KERNEL_BYTES) -> None:
    """Join what can be joined of a process in time; nothing when at most ``left_bytes`` are split.

    It is only for speed: nothing is raised when it cannot be done or the process has ended.
    """
    if _is_wanted():
        with suppress(OSError):
            mappings = _mappings(pid)
            if sum(map(_split_bytes, mappings)) > left_bytes:
                _join_each(pid, mappings, deadline)


def _is_wanted() -> bool:
    """Tell whether this host has huge pages, and its administrator wants them."""
    try:
        return "[never]" not in (SETTINGS / "enabled").read_text()
    except OSError:
        return False


def _mappings(pid: int) -> list[Mapping]:
    """Return the anonymous mappings that QEMU wants in huge pages (``hg`` among their flags)."""
    return [each for each in smaps.of(pid) if not each.inode and each.has_flag("hg")]


def _split_bytes(mapping: Mapping) -> int:
    """Return how much of a mapping is there in small pages."""
    return mapping.bytes_of("Anonymous") - mapping.bytes_of("AnonHugePages")


def _join_each(pid: int, mappings: list[Mapping], deadline: Deadline) -> None:
    """Join what is whole in each mapping; raises ``OSError`` when no more is possible."""
    huge_bytes = int((SETTINGS / "hpage_pmd_size").read_text())
    process = _called(_PIDFD_OPEN, pid, 0)
    try:
        with smaps.page_states(pid) as states:
            for mapping in mappings:
                for start, length in _whole(states, mapping, huge_bytes):
                    if not deadline.left_seconds:
                        return
                    _collapse(process, start, length)
    finally:
        os.close(process)


def _whole(
    states: Callable[[int, int], bytes], mapping: Mapping, huge_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield the address and length of each run of places for huge pages that have all their pages.

    A run ends at the latest with its slice.
    """
    slice_bytes = max(_SLICE_BYTES, huge_bytes)
    whole_place = _OWN_PAGE * (huge_bytes // mmap.PAGESIZE)
    first = -(-mapping.start // huge_bytes) * huge_bytes
    for start in range(first, mapping.end, slice_bytes):
        places = (min(start + slice_bytes, mapping.end) - start) // huge_bytes
        told = states(start, places * huge_bytes)
        is_whole = [
            told[at : at + len(whole_place)] == whole_place
            for at in range(0, len(told), len(whole_place))
        ]
        for whole, run in groupby(range(len(is_whole)), key=is_whole.__getitem__):
            numbers = list(run)
            if whole:
                yield start + numbers[0] * huge_bytes, len(numbers) * huge_bytes


def _collapse(process: int, start: int, length: int) -> None:
    """Have the kernel join a range of a process; raises ``OSError`` when more is in vain."""
    place = ctypes.byref(_Range(start, length))
    try:
        _called(_PROCESS_MADVISE, process, place, ctypes.c_size_t(1), _MADV_COLLAPSE, 0)
    except OSError as error:
        if error.errno not in _PASSING:
            raise


def _called(number: int, *arguments: Any) -> int:
    """Make a system call; raises ``OSError``."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    done = int(call(ctypes.c_long(number), *arguments))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
