"""``pulse-disk``: tells which number of a pulse guest a block device holds, past every cache."""

from __future__ import annotations

import mmap
import os
import struct
import sys
from typing import Final

SECTOR: Final = 512
SLOTS: Final = 2047
MAGIC: Final = 0x3130455349505553
"""As in pulse.c."""


def number_in(sector: bytes) -> int | None:
    """Return the number a sector holds; ``None`` when it is not whole or not pulse's."""
    magic, _, number, _ = struct.unpack_from("<4Q", sector)
    whole = sector[32:] == struct.pack("<Q", number) * ((SECTOR - 32) // 8)
    return number if magic == MAGIC and whole else None


def read_start(path: str) -> bytes:
    """Return the device's first MiB, read with O_DIRECT (at least two sectors must be there)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        # An anonymous map is aligned to pages, which O_DIRECT wants.
        with mmap.mmap(-1, SECTOR * (SLOTS + 1)) as buffer:
            size = os.readv(fd, [buffer])
            return buffer[:size]
    finally:
        os.close(fd)


def main() -> None:
    """Print the number in sector 0 and whether its slot agrees; status 1 when there is none."""
    if len(sys.argv) != 2:
        sys.exit("usage: pulse-disk PATH")
    start = read_start(sys.argv[1])
    number = number_in(start[:SECTOR])
    if number is None:
        sys.exit(f"pulse-disk: {sys.argv[1]}: no number of pulse in sector 0")
    slots = len(start) // SECTOR - 1
    at = (1 + number % slots) * SECTOR
    if number_in(start[at : at + SECTOR]) != number:
        sys.exit(f"pulse-disk: {sys.argv[1]}: sector 0 holds {number}, its slot does not")
    print(number)


if __name__ == "__main__":
    main()
