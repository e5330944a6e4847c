"""Read the p2m of a suspended 64-bit PV guest: its own table from PFN to MFN.

Linux publishes it in shared_info, as a list in its virtual memory (``p2m_cr3``, ``p2m_vaddr``: the
table's own MFNs come from walking that root) or as a tree of three levels linked by MFNs.  The list
is preferred, as in Xen's saver (xen.git tools/libs/guest/xg_sr_save_x86_pv.c: map_p2m_list,
map_p2m_tree; arch-x86/xen.h, struct arch_shared_info).

A guest that maps pages of other domains, or may grow, has a list of millions of PFNs most of which
have no frame.  All those parts share one frame, and one table of that frame.  So each distinct
frame is fetched once, and the list is cut where only repetitions of one table follow (Xen's saver
does the same).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

import numpy as np

from snapvm.memory.normalise import ENTRIES, ROOT_LEVEL
from snapvm.memory.pagingmode import (
    FOUR_LEVEL,
    FRAME_BYTES,
    FRAME_SHIFT,
    Words,
    bit_span,
    frame_numbers,
)
from snapvm.memory.xenstream import MAX_END_PFN
from snapvm.refusals import BadImage

FrameFetcher = Callable[[Words], Words]
"""Takes distinct MFNs and returns their frames as entries, shape (n, 512); the guest may still
change them."""

_ARCH: Final = Struct("<QQQQQQ")
_ARCH_OFFSET: Final = 3088
"""Where struct arch_shared_info begins in the shared_info page of a 64-bit guest."""
_INDEX_BITS: Final = 9
_TRIMMED_LEVEL: Final = 2
"""The level whose entries are the tables that a guest repeats where it has no frames."""
_XEN_START: Final = 0xFFFF800000000000
_XEN_END: Final = 0xFFFF87FFFFFFFFFF
"""The addresses that Xen keeps for itself (tools/libs/guest/xg_core_x86.c: HYPERVISOR_VIRT_...)."""
_TRANSLATED: Final = bit_span(0, FOUR_LEVEL.va_bits - 1)
"""The bits of an address that the page tables translate."""
_FETCHED_AT_ONCE: Final = 1024
_NOWHERE: Final = (0, (1 << 64) - 1)
"""In place of the tree: none yet, and none any more, as in Linux since 4.3."""


class _Field(IntEnum):
    """The fields of struct arch_shared_info, by their places."""

    MAX_PFN = 0
    LIST_LIST = 1
    CR3 = 3
    VADDR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class P2mRoots:
    """The fields of shared_info that say where the p2m is."""

    pfns: int
    """``arch.max_pfn``, which is a count."""
    frame_list_list_mfn: int
    cr3: int
    """0 where the guest has the tree only."""
    vaddr: int
    generation: int
    """Odd while the guest changes the list."""

    @classmethod
    def of(cls, shared_info: bytes) -> P2mRoots:
        """Read the fields from the shared_info page of a 64-bit guest."""
        pfns, list_list, _, cr3, vaddr, generation = _ARCH.unpack_from(shared_info, _ARCH_OFFSET)
        return cls(
            pfns=pfns,
            frame_list_list_mfn=list_list,
            cr3=cr3,
            vaddr=vaddr,
            generation=generation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class P2m:
    """The p2m of a guest, and the frames that hold it."""

    end_pfn: int
    entries: Words
    """MFNs by PFN, with Linux's marks; there are ``end_pfn`` + 1."""
    leaf_mfns: Words
    """The frames that hold the entries; `FrameMap.pfns_of` returns their PFNs."""


def read_p2m(
    roots: P2mRoots, fetch: FrameFetcher, *, max_mfn: int, most_bytes: int, origin: str
) -> P2m:
    """Read the p2m from the list or the tree; ``max_mfn`` is the number of machine frames.

    It is refused when it takes more than ``most_bytes``: a guest of few frames may have a p2m of
    2 GiB, all parts of which are one frame.

    Raises `BadImage`, with ``origin`` as its path and the offset of the wrong field in shared_info.
    """
    if not 0 < roots.pfns <= MAX_END_PFN + 1:
        raise _bad(origin, _Field.MAX_PFN, f"the guest claims {roots.pfns} frames")
    require_published(roots, origin=origin)
    reader = _Reader(fetch=fetch, max_mfn=max_mfn, origin=origin)
    leaves = (roots.pfns - 1) // ENTRIES + 1
    found = reader.by_list(roots, leaves) if roots.cr3 else reader.by_tree(roots, leaves)
    if len(found) * FRAME_BYTES > most_bytes:
        size, most = len(found) * FRAME_BYTES >> 20, most_bytes >> 20
        why = f"its p2m takes {size} MiB, and this host can spare {most} MiB for it"
        raise _bad(origin, _Field.MAX_PFN, why)
    pfns = min(roots.pfns, len(found) * ENTRIES)
    return P2m(
        end_pfn=pfns - 1,
        entries=reader.frames(found).reshape(-1)[:pfns],
        leaf_mfns=found,
    )


def require_published(roots: P2mRoots, *, origin: str) -> None:
    """Raise `BadImage` when the guest's kernel does not tell where its p2m is.

    That of a unikernel, which is never to be saved, may not; nor does one that is just booting.
    """
    if not roots.cr3 and roots.frame_list_list_mfn in _NOWHERE:
        why = "the guest's kernel does not tell where its table of frames is"
        raise _bad(origin, _Field.LIST_LIST, why)


def _bad(origin: str, field: _Field, why: str) -> BadImage:
    return BadImage(path=origin, offset_bytes=_ARCH_OFFSET + field * 8, why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Finds the frames of a p2m, and reads them."""

    fetch: FrameFetcher
    max_mfn: int
    origin: str

    def frames(self, mfns: Words) -> Words:
        """Return a copy of frames, and fetch each distinct frame once."""
        distinct, places = np.unique(mfns, return_inverse=True)
        entries = np.empty((len(mfns), ENTRIES), np.uint64)
        for start in range(0, len(distinct), _FETCHED_AT_ONCE):
            stop = start + _FETCHED_AT_ONCE
            rows = np.flatnonzero((places >= start) & (places < stop))
            entries[rows] = self.fetch(distinct[start:stop])[places[rows] - start]
        return entries

    def checked(self, mfns: Words, field: _Field, what: str) -> Words:
        """Return MFNs that were read from the guest, none of which may be beyond the host's."""
        wrong = (mfns == 0) | (mfns >= np.uint64(self.max_mfn))
        if wrong.any():
            at = int(np.argmax(wrong))
            why = f"{what} {at} of the p2m is machine frame {int(mfns[at]):#x}"
            raise _bad(self.origin, field, why)
        return mfns

    def by_list(self, roots: P2mRoots, leaves: int) -> Words:
        """Return the leaves of a list: the frames that the guest's tables map where it lies."""
        first, last = self._place_of_list(roots, leaves)
        mfns = np.array([roots.cr3 >> FRAME_SHIFT], np.uint64)
        self.checked(mfns, _Field.CR3, "root")
        for level in range(ROOT_LEVEL, 0, -1):
            shift = FRAME_SHIFT + _INDEX_BITS * (level - 1)
            start = first >> shift & ENTRIES - 1
            count = (last >> shift) - (first >> shift) + 1
            entries = self.frames(mfns).reshape(-1)[start : start + count]
            mfns = self.checked(frame_numbers(entries), _Field.CR3, f"L{level} entry")
            if level == _TRIMMED_LEVEL:
                mfns = _trimmed(mfns)
                tables_end = ((first >> shift) + len(mfns) << shift) - 1
                last = min(last, tables_end)
        return mfns

    def _place_of_list(self, roots: P2mRoots, leaves: int) -> tuple[int, int]:
        """Return the first and last address of the list, as far as page tables translate them."""
        end = roots.vaddr + leaves * FRAME_BYTES - 1
        is_canonical = all(
            va < 1 << 64 and FOUR_LEVEL.canonical(va & _TRANSLATED) == va
            for va in (roots.vaddr, end)
        )
        # Of two canonical addresses in different halves the part between them has Xen's in it.
        if not is_canonical or (roots.vaddr <= _XEN_END and end >= _XEN_START):
            why = f"the p2m cannot be at {roots.vaddr:#x} to {end:#x}"
            raise _bad(self.origin, _Field.VADDR, why)
        return roots.vaddr & _TRANSLATED, end & _TRANSLATED

    def by_tree(self, roots: P2mRoots, leaves: int) -> Words:
        """Return the leaves of a tree: a list of lists, which are linked by MFN."""
        root = np.array([roots.frame_list_list_mfn], np.uint64)
        lists = (leaves - 1) // ENTRIES + 1
        if lists > ENTRIES:
            why = f"a tree has no room for {roots.pfns} frames"
            raise _bad(self.origin, _Field.MAX_PFN, why)
        self.checked(root, _Field.LIST_LIST, "root")
        mfns = self.checked(self.frames(root)[0, :lists], _Field.LIST_LIST, "frame list")
        mfns = _trimmed(mfns)
        found = self.frames(mfns).reshape(-1)[:leaves]
        return self.checked(found, _Field.LIST_LIST, "leaf")


def _trimmed(mfns: Words) -> Words:
    """Cut off the repetitions of one table at the end: it is that of the PFNs without a frame."""
    differs = np.flatnonzero(mfns != mfns[-1])
    keep = int(differs[-1]) + 1 if len(differs) else 0
    return mfns[:keep] if 0 < keep < len(mfns) - 1 else mfns
