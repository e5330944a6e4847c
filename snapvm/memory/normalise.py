"""Turn the page tables of a suspended 64-bit Xen PV domain from machine to pseudo-physical frames.

A PV guest's tables hold MFNs; an image must hold PFNs, because a restore gets other MFNs.  Who owns
a frame is decided by Xen's own rule (xen.git tools/libs/guest/xg_sr_common_x86_pv.c,
mfn_in_pseudophysmap): an MFN is the domain's when its machine-to-physical entry names a PFN whose
physical-to-machine entry names the MFN again.  `FrameMap` checks that once for each frame of the
domain; after that an entry takes one look-up.

Each entry is treated as in normalise_pagetable (xg_sr_save_x86_pv.c), with one difference:

* L4 entries 256 to 271 are Xen's own (0xffff800000000000 up) and become 0;
* an entry that is not present stays as it is: Linux keeps PFNs in those;
* a present entry above L1 with PSE set is an error: PV guests have no large pages;
* a present entry with an owned frame gets the PFN, all its flags stay;
* a present **L1** entry with a frame that is not owned becomes 0 as a whole and is logged.  (Xen's
  saver silently drops the whole table instead.  To clear only the present bit would not do: Xen's
  L1TF check crashes a PV guest for an address left in an entry that is not present.)
* above L1, a present entry with a frame that is not owned is an error.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import (
    FRAME_BYTES,
    FRAME_NUMBER_MASK,
    FRAME_SHIFT,
    PTE_LARGE,
    PTE_PRESENT,
    Marks,
    Words,
    bit_span,
    frame_numbers,
)
from snapvm.refusals import BadImage

ENTRIES: Final = 512
ROOT_LEVEL: Final = 4
XEN_SLOTS: Final = slice(256, 272)
"""The L4 entries Xen keeps for itself (ROOT_PAGETABLE_FIRST/LAST_XEN_SLOT, asm/config.h)."""

P2M_FOREIGN: Final = 1 << 63
P2M_IDENTITY: Final = 1 << 62
"""Linux's marks in its p2m (arch/x86/include/asm/xen/page.h): another domain's frame, mapped
through a grant, and a frame of the host's I/O space.  No frame at all is all ones."""

_FLAGS: Final = np.uint64(bit_span(0, 11) | bit_span(52, 63))
_OWNED: Final = np.uint64(PTE_PRESENT)
"""The mark in a step of `FrameMap`; it is where an entry has its present bit."""
_NORESERVE: Final = 0x4000
"""MAP_NORESERVE (asm-generic/mman.h), which Python's mmap has since 3.13."""
_P2M_MARKS: Final = np.uint64(P2M_FOREIGN | P2M_IDENTITY)
_NO_WORDS: Final = np.empty(0, np.uint64)
_BLOCK_PFNS: Final = 1 << 18
"""How many p2m entries are worked on at once: each array made on the way takes 2 MiB, however large
the guest is."""
_BLOCK_TABLES: Final = 32
"""How many tables are worked on at once: 128 KiB of entries, and as much of each scratch array,
stay in a core's cache."""

Levels = npt.NDArray[np.uint8]


class ForeignKind(IntEnum):
    """What is known about a frame that the domain maps but does not own."""

    UNKNOWN = 0
    OTHER_GRANT = 1
    """Another domain's page, mapped through a grant: gntdev, vchan, a backend in the guest."""
    SHARED_INFO = 2
    """The page the domain shares with Xen."""
    MMIO = 3
    """The memory of a device, or an address beyond the host's RAM."""


FOREIGN_ENTRY: Final = np.dtype(
    [
        ("table_pfn", "<u8"),
        ("mfn", "<u8"),
        ("flags", "<u8"),  # bits 0 to 11 and 52 to 63 of the entry, in their places
        ("index", "<u2"),
        ("kind", "u1"),  # a ForeignKind
    ]
)
ForeignEntries = npt.NDArray[np.void]
"""One element of type `FOREIGN_ENTRY` for each L1 entry that was zeroed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMap:
    """Which machine frames a domain owns and at which PFN, as of one moment.

    ``steps`` has an element for each machine frame of the host, and one more that is 0.  For an
    owned frame it is ``(pfn - mfn) << 12 | 1`` modulo 2**64: what has to be added to an entry, and
    a mark.  For any other frame it is 0.  Each 2 MiB of the array stand for a GiB of machine
    memory, and take memory only if the domain has a frame in that GiB.
    """

    steps: Words
    max_mfn: int
    other_grant_mfns: Words
    identity_mfns: Words
    shared_info_mfn: int | None
    """The page that the domain shares with Xen, where that is known."""

    @classmethod
    def build(cls, p2m: Words, m2p: Words, *, max_mfn: int) -> FrameMap:
        """Check every entry of a p2m (indexed by PFN, with Linux's marks) against Xen's ``m2p``.

        ``max_mfn`` is the number of machine frames (XENMEM_maximum_ram_page is a count, despite its
        name).
        """
        return cls.of(p2m, owned(p2m, m2p, max_mfn=max_mfn), max_mfn=max_mfn)

    @classmethod
    def of(
        cls, p2m: Words, is_owned: Marks, *, max_mfn: int, shared_info_mfn: int | None = None
    ) -> FrameMap:
        """Make the map from a p2m and the marks of its owned entries (see `owned`)."""
        steps = _mostly_holes(max_mfn + 1)
        others: dict[int, list[Words]] = {P2M_FOREIGN: [], P2M_IDENTITY: []}
        for start in range(0, len(p2m), _BLOCK_PFNS):
            block = slice(start, start + _BLOCK_PFNS)
            entries, is_own = p2m[block], is_owned[block]
            mfns = entries[is_own]
            pfns = np.flatnonzero(is_own).view(np.uint64) + np.uint64(start)
            steps[mfns] = (pfns - mfns) << np.uint64(FRAME_SHIFT) | _OWNED
            marks = entries & _P2M_MARKS
            for mark, found in others.items():
                found.append(entries[marks == np.uint64(mark)] & ~_P2M_MARKS)
        return cls(
            steps=steps,
            max_mfn=max_mfn,
            other_grant_mfns=np.unique(np.concatenate([_NO_WORDS, *others[P2M_FOREIGN]])),
            identity_mfns=np.unique(np.concatenate([_NO_WORDS, *others[P2M_IDENTITY]])),
            shared_info_mfn=shared_info_mfn,
        )

    def pfns_of(self, mfns: Words) -> tuple[Words, Marks]:
        """Return the PFNs of machine frames, and marks of those that the domain owns."""
        steps = self.steps[np.minimum(mfns, np.uint64(self.max_mfn))]
        pfns = mfns + (steps.view(np.int64) >> FRAME_SHIFT).view(np.uint64)
        return pfns, steps & _OWNED != 0

    def classify(self, mfns: Words) -> npt.NDArray[np.uint8]:
        """Return the `ForeignKind` of frames that the domain does not own."""
        kinds = np.full(len(mfns), ForeignKind.UNKNOWN, np.uint8)
        beyond = mfns >= np.uint64(self.max_mfn)
        kinds[beyond | np.isin(mfns, self.identity_mfns)] = ForeignKind.MMIO
        kinds[np.isin(mfns, self.other_grant_mfns)] = ForeignKind.OTHER_GRANT
        if self.shared_info_mfn is not None:
            kinds[mfns == np.uint64(self.shared_info_mfn)] = ForeignKind.SHARED_INFO
        return kinds


def owned(p2m: Words, m2p: Words, *, max_mfn: int) -> Marks:
    """Mark the entries of a p2m that Xen's table confirms; see `FrameMap.build`."""
    agrees = np.zeros(len(p2m), np.bool_)
    for start in range(0, len(p2m), _BLOCK_PFNS):
        entries = p2m[start : start + _BLOCK_PFNS]
        rows = np.flatnonzero(entries < np.uint64(max_mfn))
        agrees[start + rows] = m2p[entries[rows]] == rows.view(np.uint64) + np.uint64(start)
    return agrees


def _mostly_holes(count: int) -> Words:
    """Return an array of zeroes that takes memory only where it is written.

    A control domain of 2 GiB may manage a host of a TiB.  Linux refuses a mapping larger than all
    memory, unless it is told not to reserve memory for it (mm/util.c, __vm_enough_memory).
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    room = mmap.mmap(-1, count * 8, flags=flags)
    with suppress(OSError):  # a kernel without large pages
        room.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(room, np.uint64)


class Normaliser:
    """Canonicalises batches of tables; it has scratch memory, so each thread needs its own."""

    def __init__(self, frames: FrameMap, origin: str) -> None:
        """``origin`` is the path in an error, whose offset is pseudo-physical."""
        self._frames = frames
        self._origin = origin
        self._scratch = np.empty((3, _BLOCK_TABLES * ENTRIES), np.uint64)

    def canonicalise(self, tables: Words, levels: Levels, table_pfns: Words) -> ForeignEntries:
        """Rewrite tables in place, and return the L1 entries that had to be zeroed.

        ``tables`` is a contiguous copy of the shape (n, 512); ``levels`` (1 to 4) and
        ``table_pfns`` have n elements.  Raises `BadImage` for what only an inconsistent domain has,
        and leaves the tables partly rewritten then.
        """
        if tables.shape != (len(levels), ENTRIES) or not tables.flags.c_contiguous:
            raise ValueError(f"tables of the shape {tables.shape}, not rewritable in place")
        high = np.flatnonzero(levels > 1)
        if len(high):
            tables[np.flatnonzero(levels == ROOT_LEVEL), XEN_SLOTS] = 0
            self._refuse_large_pages(tables, levels, table_pfns, high)
        foreign = []
        for start in range(0, len(tables), _BLOCK_TABLES):
            stop = min(start + _BLOCK_TABLES, len(tables))
            places = self._rewrite(tables[start:stop].reshape(-1))
            if len(places):
                foreign.append(places + start * ENTRIES)
        if not foreign:
            return np.empty(0, FOREIGN_ENTRY)
        return self._zero(tables, levels, table_pfns, np.concatenate(foreign))

    def _rewrite(self, entries: Words) -> npt.NDArray[np.intp]:
        """Give entries of owned frames their PFNs; return the places of other present entries."""
        count = len(entries)
        mfns, present, steps = (scratch[:count] for scratch in self._scratch)
        np.right_shift(entries, FRAME_SHIFT, out=mfns)
        np.bitwise_and(mfns, FRAME_NUMBER_MASK, out=mfns)
        # "clip" turns an index out of range into the last element, which is 0: not owned.
        np.take(self._frames.steps, mfns.view(np.int64), out=steps, mode="clip")
        np.bitwise_and(entries, PTE_PRESENT, out=present)
        np.multiply(steps, present, out=steps)
        # Subtracting clears the present bit, and the mark in the step of an owned frame sets it.
        np.subtract(entries, present, out=entries)
        np.add(entries, steps, out=entries)
        if np.count_nonzero(steps) == int(present.sum()):
            return np.empty(0, np.intp)
        return np.flatnonzero((entries & _OWNED) != present)

    def _zero(
        self, tables: Words, levels: Levels, table_pfns: Words, places: npt.NDArray[np.intp]
    ) -> ForeignEntries:
        """Zero the foreign entries at ``places`` and return them; above L1 they are an error."""
        rows, indexes = np.divmod(places, ENTRIES)
        above = np.flatnonzero(levels[rows] > 1)
        values = tables[rows, indexes]
        mfns = frame_numbers(values)
        if len(above):
            at = above[0]
            why = f"machine frame {mfns[at]:#x}, which the domain does not own"
            self._refuse(int(levels[rows[at]]), int(table_pfns[rows[at]]), int(indexes[at]), why)
        log = np.empty(len(places), FOREIGN_ENTRY)
        log["table_pfn"] = table_pfns[rows]
        log["index"] = indexes
        log["mfn"] = mfns
        log["flags"] = values & _FLAGS | np.uint64(PTE_PRESENT)
        log["kind"] = self._frames.classify(mfns)
        tables[rows, indexes] = 0
        return log

    def _refuse_large_pages(
        self, tables: Words, levels: Levels, table_pfns: Words, high: npt.NDArray[np.intp]
    ) -> None:
        """Raise `BadImage` for a large page in the tables that ``high`` says are above L1."""
        large = np.uint64(PTE_LARGE | PTE_PRESENT)
        rows, indexes = np.nonzero(tables[high] & large == large)
        if len(rows):
            row = high[rows[0]]
            entry = int(tables[row, indexes[0]])
            why = f"a large page ({entry:#x}), which no PV guest can have"
            self._refuse(int(levels[row]), int(table_pfns[row]), int(indexes[0]), why)

    def _refuse(self, level: int, table_pfn: int, index: int, why: str) -> None:
        raise BadImage(
            path=self._origin,
            offset_bytes=table_pfn * FRAME_BYTES + index * 8,
            why=f"entry {index} of the L{level} table in frame {table_pfn:#x} refers to {why}",
        )
