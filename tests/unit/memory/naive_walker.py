"""A second walker, by hand and one entry at a time: the oracle of the paging tests.

It shares no line with snapvm.memory: the four modes are spelled out as the manual describes them
(Intel SDM volume 3A, chapter 4), bit by bit, in Python integers.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """What one address comes to."""

    physical: int
    page_bytes: int
    writable: bool
    user: bool
    executable: bool


FAULT = "reserved"
ABSENT = "absent"
UNREAD = "unread"
Memory = MappingABC[int, bytes]


def _entry(memory: Memory, address: int, size: int) -> int | None:
    frame = memory.get(address // 4096)
    if frame is None:
        return None
    at = address % 4096
    return int.from_bytes(frame[at : at + size], "little")


def look_up(mode: str, memory: Memory, cr3: int, va: int) -> Page | str:  # noqa: C901, PLR0911, PLR0912
    """Translate ``va``; a `Page`, or one of the words above."""
    if mode == "32-bit":
        pde = _entry(memory, (cr3 & 0xFFFFF000) + 4 * (va >> 22 & 0x3FF), 4)
        if pde is None:
            return UNREAD
        if not pde & 1:
            return ABSENT
        writable, user = bool(pde & 2), bool(pde & 4)
        if pde & 0x80:
            if pde & 0x200000:
                return FAULT
            base = (pde & 0xFFC00000) + ((pde >> 13 & 0xFF) * 2**32)
            return Page(base + va % 2**22, 2**22, writable, user, executable=True)
        pte = _entry(memory, (pde & 0xFFFFF000) + 4 * (va >> 12 & 0x3FF), 4)
        if pte is None:
            return UNREAD
        if not pte & 1:
            return ABSENT
        return Page(
            (pte & 0xFFFFF000) + va % 4096,
            4096,
            writable and bool(pte & 2),
            user and bool(pte & 4),
            executable=True,
        )

    writable = user = executable = True
    if mode == "PAE":
        pdpte = _entry(memory, (cr3 & 0xFFFFFFE0) + 8 * (va >> 30 & 3), 8)
        if pdpte is None:
            return UNREAD
        if not pdpte & 1:
            return ABSENT
        for bit in (1, 2, 5, 6, 7, 8, *range(52, 64)):
            if pdpte >> bit & 1:
                return FAULT
        table = pdpte & 0x000FFFFFFFFFF000
        shifts = [21, 12]
    else:
        table = cr3 & 0x000FFFFFFFFFF000
        shifts = [48, 39, 30, 21, 12] if mode == "5-level" else [39, 30, 21, 12]
    for shift in shifts:
        entry = _entry(memory, table + 8 * (va >> shift & 511), 8)
        if entry is None:
            return UNREAD
        if not entry & 1:
            return ABSENT
        if mode == "PAE" and entry >> 52 & 0x7FF:
            return FAULT
        leaf = shift == 12 or bool(entry & 0x80)
        if leaf and shift in (48, 39):
            return FAULT
        if leaf and shift > 12:
            for bit in range(13, shift):
                if entry >> bit & 1:
                    return FAULT
        writable = writable and bool(entry & 2)
        user = user and bool(entry & 4)
        executable = executable and not entry >> 63
        table = entry & 0x000FFFFFFFFFF000
        if leaf:
            size = 1 << shift
            return Page(table // size * size + va % size, size, writable, user, executable)
    raise AssertionError
