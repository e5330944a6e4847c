"""What the kernel tells of each mapping of a process, and of its pages (proc_pid_smaps(5))."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_ENTRY_BYTES = 8
"""Of a page in ``pagemap`` (Linux, Documentation/admin-guide/mm/pagemap.rst)."""
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) *(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """One mapping: its addresses, where its pages come from, and all that is told of it."""

    start: int
    end: int
    inode: int
    path: str
    told: str

    @property
    def length_bytes(self) -> int:
        """How much of the process's addresses it takes, whether there are pages or not."""
        return self.end - self.start

    def bytes_of(self, name: str) -> int:
        """Return one of its sizes, such as ``Rss``; 0 when the kernel does not tell it."""
        value = re.search(rf"^{name}:\s+(\d+) kB$", self.told, re.MULTILINE)
        return int(value[1]) << 10 if value else 0

    def has_flag(self, flag: str) -> bool:
        """Tell whether a flag of two letters is among its ``VmFlags``."""
        return re.search(rf"^VmFlags:.* {flag}\b", self.told, re.MULTILINE) is not None


def of(pid: int) -> list[Mapping]:
    """Return the mappings of a process; raises ``OSError``."""
    return list(_read((PROC / f"{pid}/smaps").read_text(errors="replace")))


@contextmanager
def page_states(pid: int) -> Iterator[Callable[[int, int], bytes]]:
    """Yield what tells, of an address and a length in bytes, the state of each page there.

    That is the highest byte of its entry in ``pagemap``.  It raises ``OSError``, as this does.
    """
    with (PROC / f"{pid}/pagemap").open("rb", buffering=0) as pagemap:

        def states(start: int, length_bytes: int) -> bytes:
            count_bytes = length_bytes // mmap.PAGESIZE * _ENTRY_BYTES
            entries = os.pread(pagemap.fileno(), count_bytes, start // mmap.PAGESIZE * _ENTRY_BYTES)
            return entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]

        yield states


def _read(text: str) -> Iterator[Mapping]:
    for told in re.split(r"^(?=[0-9a-f]+-)", text, flags=re.MULTILINE):
        head = _HEAD.match(told)
        if head:
            start, end, inode, path = head.groups()
            yield Mapping(
                start=int(start, 16),
                end=int(end, 16),
                inode=int(inode),
                path=path,
                told=told,
            )
