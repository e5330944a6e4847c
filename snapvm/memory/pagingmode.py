"""x86 paging modes as data, and whole tables decoded in numpy.

A mode has levels from the root down; each level says which bits of an entry must be zero and
whether an entry may be a leaf.  `decode` takes all entries of a table at once and says what each is
and where it leads.  The walker is in `snapvm.memory.paging`.

Sources: Intel SDM volume 3A, chapter 4 ("Paging"), tables 4-4 to 4-6 (32-bit), 4-8 to 4-11 (PAE),
4-14 to 4-20 (4- and 5-level).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

FRAME_BYTES: Final = 4096
FRAME_SHIFT: Final = 12

PTE_PRESENT: Final = 1 << 0
PTE_WRITABLE: Final = 1 << 1
PTE_USER: Final = 1 << 2
PTE_ACCESSED: Final = 1 << 5
PTE_LARGE: Final = 1 << 7
"""PS: the entry is a leaf above the last level.  In the last level this bit is PAT."""
PTE_NX: Final = 1 << 63

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.bool_]


def bit_span(low: int, high: int) -> int:
    """Return the mask of bits ``low`` to ``high``, both included."""
    return (1 << high + 1) - (1 << low)


FRAME_NUMBER_MASK: Final = np.uint64(bit_span(0, 39))
"""What a frame number can be: an entry of PAE or long mode holds it in bits 12 to 51."""


def frame_numbers(entries: Words) -> Words:
    """Return the frame number in each entry of PAE or long mode, present or not."""
    return entries >> np.uint64(FRAME_SHIFT) & FRAME_NUMBER_MASK


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of tables."""

    name: str
    shift: int
    """The lowest bit of an address that belongs to this level's index."""
    index_bits: int
    table_reserved: int
    """Bits that must be zero in an entry that leads to a table."""
    leaf_reserved: int | None = None
    """Bits that must be zero in a leaf; None where an entry cannot be a leaf."""
    has_rights: bool = True
    """Whether an entry restricts writing and user access; PAE's root entries do not."""

    @property
    def page_bytes(self) -> int:
        """How many bytes of the address space one entry covers."""
        return 1 << self.shift

    @property
    def entries(self) -> int:
        """How many entries a table has."""
        return 1 << self.index_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class PagingMode:
    """How a processor translates addresses; the levels are from the root down."""

    name: str
    entry_bytes: int
    va_bits: int
    levels: tuple[Level, ...]
    root_mask: int
    """Which bits of CR3 are the address of the root table."""
    address_mask: int
    """Which bits of an entry are the address of a table or of a leaf."""
    high_leaf_bits: int = 0
    """Bits of a 4 MiB leaf, from bit 13 up, that are bits 32 and up of its address (PSE-36)."""
    is_signed: bool = False
    """Whether addresses are sign-extended above ``va_bits`` (canonical form)."""

    def canonical(self, va: int) -> int:
        """Return the canonical address whose lowest ``va_bits`` are those of ``va``."""
        if self.is_signed and va >> (self.va_bits - 1) & 1:
            return va | bit_span(self.va_bits, 63)
        return va


_LONG_ADDRESS: Final = bit_span(12, 51)
_LONG_PT: Final = Level(name="PT", shift=12, index_bits=9, table_reserved=0, leaf_reserved=0)
_LONG_PD: Final = Level(
    name="PD", shift=21, index_bits=9, table_reserved=0, leaf_reserved=bit_span(13, 20)
)
_LONG_PDPT: Final = Level(
    name="PDPT", shift=30, index_bits=9, table_reserved=0, leaf_reserved=bit_span(13, 29)
)
_LONG_PML4: Final = Level(name="PML4", shift=39, index_bits=9, table_reserved=PTE_LARGE)
_LONG_PML5: Final = Level(name="PML5", shift=48, index_bits=9, table_reserved=PTE_LARGE)

# SDM 4.4.2: bits 52 to 62 are reserved in PAE entries, and ignored in those of long mode.
_PAE_HIGH: Final = bit_span(52, 62)
_PAE_PD: Final = replace(
    _LONG_PD, table_reserved=_PAE_HIGH, leaf_reserved=_PAE_HIGH | bit_span(13, 20)
)
_PAE_PT: Final = replace(_LONG_PT, table_reserved=_PAE_HIGH, leaf_reserved=_PAE_HIGH)

TWO_LEVEL: Final = PagingMode(
    name="32-bit",
    entry_bytes=4,
    va_bits=32,
    levels=(
        Level(name="PD", shift=22, index_bits=10, table_reserved=0, leaf_reserved=1 << 21),
        Level(name="PT", shift=12, index_bits=10, table_reserved=0, leaf_reserved=0),
    ),
    root_mask=bit_span(12, 31),
    address_mask=bit_span(12, 31),
    high_leaf_bits=bit_span(13, 20),
)
"""Two levels with CR4.PSE: 4 MiB pages, whose bits 13 to 20 are address bits 32 to 39."""


PAE: Final = PagingMode(
    name="PAE",
    entry_bytes=8,
    va_bits=32,
    levels=(
        Level(
            name="PDPT",
            shift=30,
            index_bits=2,
            table_reserved=bit_span(1, 2) | bit_span(5, 8) | bit_span(52, 63),
            has_rights=False,
        ),
        _PAE_PD,
        _PAE_PT,
    ),
    root_mask=bit_span(5, 31),
    address_mask=_LONG_ADDRESS,
)

PAE_UNDER_XEN: Final = replace(
    PAE,
    name="PAE under Xen",
    levels=(replace(PAE.levels[0], table_reserved=PTE_LARGE), _LONG_PD, _LONG_PT),
)
"""A 32-bit PV guest of 64-bit Xen: the processor walks its tables in long mode, so that its root
entries have accessed bits and others that PAE reserves."""

FOUR_LEVEL: Final = PagingMode(
    name="4-level",
    entry_bytes=8,
    va_bits=48,
    levels=(_LONG_PML4, _LONG_PDPT, _LONG_PD, _LONG_PT),
    root_mask=_LONG_ADDRESS,
    address_mask=_LONG_ADDRESS,
    is_signed=True,
)

FIVE_LEVEL: Final = replace(
    FOUR_LEVEL, name="5-level", va_bits=57, levels=(_LONG_PML5, *FOUR_LEVEL.levels)
)


class Kind(IntEnum):
    """What an entry of a table is."""

    ABSENT = 0
    TABLE = 1
    LEAF = 2
    RESERVED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A decoded table: its entries, the `Kind` of each, and the address to which each leads."""

    entries: Words
    kinds: npt.NDArray[np.uint8]
    addresses: Words


def decode(mode: PagingMode, depth: int, entries: Words) -> Table:
    """Decode all entries of a table at once; ``depth`` is 0 for the root."""
    level = mode.levels[depth]
    is_last = depth == len(mode.levels) - 1
    present = entries & np.uint64(PTE_PRESENT) != 0
    addresses = entries & np.uint64(mode.address_mask)
    leaf = np.zeros(len(entries), np.bool_)
    if is_last:
        leaf = present
    elif level.leaf_reserved is not None:
        leaf = present & (entries & np.uint64(PTE_LARGE) != 0)
        base = addresses & ~np.uint64(level.page_bytes - 1)
        high = (entries & np.uint64(mode.high_leaf_bits)) << np.uint64(32 - 13)
        addresses = np.where(leaf, base | high, addresses)
    reserved = np.where(leaf, np.uint64(level.leaf_reserved or 0), np.uint64(level.table_reserved))
    kinds = np.where(leaf, np.uint8(Kind.LEAF), np.uint8(Kind.TABLE))
    kinds[entries & reserved != 0] = Kind.RESERVED
    kinds[~present] = Kind.ABSENT
    return Table(entries=entries, kinds=kinds, addresses=addresses)
