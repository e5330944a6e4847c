"""The format of QEMU's migration stream: its marks, flags and limits, and its parts as values.

Numbers are from migration/savevm.h, migration/ram.h and migration/savevm.c of QEMU 10.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np
import numpy.typing as npt

MAGIC: Final = b"QEVM\0\0\0\3"
PAGE_BYTES: Final = 4096
PAGE_BITS: Final = 12
WORD_BYTES: Final = 8
RAM: Final = b"ram"
RAM_VERSION: Final = 4
CAPABILITIES: Final = b"configuration/capabilities"
PAGE_SIZE: Final = b"configuration/target-page-bits"
"""Of a machine that could have smaller pages, as those of ARM; QEMU then expects it in a stream
(migration/savevm.c, vmstate_target_page_bits_needed; target/arm/cpu-param.h)."""
PAGE_RECORD_BYTES: Final = WORD_BYTES + PAGE_BYTES
ZERO_RECORD_BYTES: Final = WORD_BYTES + 1
NAME_LIMIT_BYTES: Final = 255
BLOCKS_LIMIT: Final = 4096
"""No machine has as many blocks of memory."""
RAM_LIMIT_BYTES: Final = 1 << 46
"""64 TiB; QEMU's x86 machines cannot have as much."""
TAIL_BYTES: Final = 8 << 20
"""How much is kept of the end of the stream; the description of the devices has some 100 KB."""


class Section(IntEnum):
    """The kinds of records in the stream (migration/savevm.h, QEMU_VM_...)."""

    END_OF_STREAM = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    DESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class Flag(IntFlag):
    """The lowest bits of the word before a page (migration/ram.h, RAM_SAVE_FLAG_...)."""

    ZERO = 0x02
    MEM_SIZE = 0x04
    PAGE = 0x08
    EOS = 0x10
    CONTINUE = 0x20


FLAG_BITS: Final = PAGE_BYTES - 1
"""Where the flags are in the word before a page; the rest of it is the page's offset."""
DEVICE_NAME_AT: Final = 6
"""The offset of the name in the section of a device: behind its kind, number and name's length."""
SWITCHOVER_START: Final = b"\0\x0b\0\0"
"""MIG_CMD_SWITCHOVER_START, without data (migration/savevm.h, since QEMU 10.0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RamBlock:
    """A block of guest memory as the START record lists it."""

    number: int
    name: str
    length_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything before the first page."""

    machine: str
    names_page_size: bool
    """Whether the configuration says how large a page is; see ``PAGE_SIZE``."""
    capabilities: tuple[str, ...]
    """Capabilities that change the format of the stream; its reader must have them set too."""
    section: int
    """The number of the section ``ram``."""
    blocks: tuple[RamBlock, ...]

    @property
    def ram_bytes(self) -> int:
        """The length of all blocks together."""
        return sum(block.length_bytes for block in self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Some pages of one block; a later page replaces an earlier one with the same offset."""

    block: RamBlock
    offsets_bytes: npt.NDArray[np.int64]
    """The offset of each page in its block."""
    data: npt.NDArray[np.uint8] | None
    """A row of 4096 bytes for each page, good until the next pages are read; None for zeroes."""


def ends_with_description(tail: bytes) -> bool:
    """Tell whether the stream ends with an end mark and a description of the stated length."""
    mark = bytes([Section.END_OF_STREAM, Section.DESCRIPTION])
    at = len(tail)
    while (at := tail.rfind(mark, 0, at)) >= 0:
        begin = at + len(mark) + 4
        length_bytes = int.from_bytes(tail[at + len(mark) : begin], "big")
        if begin + length_bytes == len(tail) and tail[begin:].startswith(b"{"):
            return tail.endswith(b"}")
    return False
