"""A Xen host's memory with one PV guest in it: the guest of ``xen_builders``, not yet canonical.

Frames are addressed by MFN.  A mapping shows what stands in memory later, as a real one does: a
write goes into every mapping that is open.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from snapvm.failures import WindowBroken
from snapvm.memoryroom import HostMemory, Room
from snapvm.xenguest import HostFacts, Mapping, Standing, TscFacts, VcpuParts
from tests.unit.memory import xen_builders as built
from tests.unit.memory.xen_builders import MFN_BASE, NOWHERE, P2M, XTAB, Guest


class FixedMemory(HostMemory):
    """A host that can always spare as much, and no other capture on it."""

    def __init__(self, spare_bytes: int) -> None:
        super().__init__(Path("/nowhere"))
        self._spare_bytes = spare_bytes

    def room(self, needed_bytes: int) -> Room:
        return Room(needed_bytes=needed_bytes, spare_bytes=self._spare_bytes)


MAX_MFN = 0x2000
SHARED_INFO_MFN = 0x10
FOREIGN_MFN = 0x20
LIST_LIST, LIST = 30, 31
"""PFNs of the two upper levels of the guest's p2m tree."""
_TABLES = {1, 2, 3, 4, 0xC}
"""The types of page tables that the guest has (xen_builders)."""
_MAX_PFN_AT, _GENERATION_AT = 3088, 3128
"""Where the first and the last field of struct arch_shared_info are in shared_info."""
_FRAMES_AT = {616: 0, 4832: 0, 4992: 12, 5008: 12}
"""Where struct vcpu_guest_context has frames (start_info, the first of the GDT, cr1, cr3), and by
how many bits each is shifted."""


@dataclass
class Machine:
    """The host's memory, and Xen's tables of it; fulfils ``GuestFrames``."""

    guest: Guest = field(default_factory=Guest)
    closed: int = 0
    unmappable: set[int] = field(default_factory=set)
    has_ended: bool = False
    pfns: int = built.LAST_PFN + 1

    def __post_init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.type_of: dict[int, int] = {}
        self.leaves = [MFN_BASE + P2M, MFN_BASE + P2M + 1]
        self.m2p = np.full(MAX_MFN, NOWHERE, np.uint64)
        self._shown: dict[int, list[tuple[bytearray, int]]] = defaultdict(list)
        """Where each frame is mapped: in which buffer, and where in that."""
        self._opened = 0
        for pfn, page in self.guest.pages.items():
            mfn = MFN_BASE + pfn
            self.pages[mfn] = self._raw(pfn, page)
            self.type_of[mfn] = self.guest.types[pfn]
            self.m2p[mfn] = pfn
        self.pages[MFN_BASE + LIST_LIST] = built.page({0: MFN_BASE + LIST})
        self.pages[MFN_BASE + LIST] = built.page({n: MFN_BASE + P2M + n for n in range(2)})
        self.pages[SHARED_INFO_MFN] = self.shared_info()
        self.pages[FOREIGN_MFN] = bytes(4096)

    def _raw(self, pfn: int, page: bytes) -> bytes:
        """Return a page as the guest has it: MFNs in tables."""
        if self.guest.types[pfn] not in _TABLES:
            return page
        words = np.frombuffer(page, "<u8").copy()
        present = words & 1 != 0
        words[present] += np.uint64(MFN_BASE << 12)
        return words.tobytes()

    def shared_info(self, pfns: int | None = None, *, generation: int = 0) -> bytes:
        """Return the guest's shared_info page, with a p2m tree."""
        page = bytearray(4096)
        struct.pack_into("<QQ", page, _MAX_PFN_AT, pfns or self.pfns, MFN_BASE + LIST_LIST)
        struct.pack_into("<Q", page, _GENERATION_AT, generation)
        return bytes(page)

    def standing(self) -> Standing:
        """Return the guest's state with MFNs in its context."""
        context = bytearray(self.guest.vcpu)
        for offset, shift in _FRAMES_AT.items():
            (value,) = struct.unpack_from("<Q", context, offset)
            struct.pack_into("<Q", context, offset, value + (MFN_BASE << shift))
        vcpu = VcpuParts(vcpu_id=0, basic=bytes(context), extended=bytes(64), xsave=b"", msrs=b"")
        return Standing(
            shared_info=self.shared_info(),
            shared_info_mfn=SHARED_INFO_MFN,
            tsc=TscFacts(mode=1, khz=2_000_000, nsec=5, incarnation=0),
            vcpus=(vcpu,),
        )

    def write(self, mfn: int, page: bytes) -> None:
        """Change a frame, wherever it is mapped."""
        self.pages[mfn] = page
        for buffer, at in self._shown[mfn]:
            buffer[at : at + 4096] = page

    def entry(self, pfn: int) -> int:
        """Return what the guest's p2m says of a PFN."""
        (entry,) = struct.unpack_from("<Q", self.pages[self.leaves[pfn // 512]], pfn % 512 * 8)
        return int(entry)

    def owns(self, pfn: int) -> bool:
        """Tell whether a PFN has a machine frame, by both tables."""
        mfn = self.entry(pfn)
        return mfn < MAX_MFN and int(self.m2p[mfn]) == pfn

    def move(self, pfn: int, mfn: int, page: bytes = b"moved!!!" * 512) -> None:
        """Give a PFN another machine frame, as ballooning out and in does."""
        if self.entry(pfn) < MAX_MFN:
            self.take_away(pfn)
        self.m2p[mfn], self.type_of[mfn] = pfn, 0
        self.write(mfn, page)
        self._enter(pfn, mfn)

    def take_away(self, pfn: int, entry: int = NOWHERE) -> None:
        """Take a PFN's machine frame: who has it mapped sees it still, and nobody else."""
        mfn = self.entry(pfn)
        self.m2p[mfn], self.type_of[mfn] = NOWHERE, XTAB
        self._enter(pfn, entry)
        del self.pages[mfn]

    def move_leaf(self, number: int, pfn: int) -> None:
        """Have a page of the p2m itself at another PFN, over what was there."""
        former, new = self.leaves[number], self.entry(pfn)
        self.write(new, self.pages[former])
        self.leaves[number] = new
        words = np.frombuffer(self.pages[MFN_BASE + LIST], "<u8").copy()
        words[number] = new
        self.write(MFN_BASE + LIST, words.tobytes())

    def grow(self, pfns: int, leaf_pfns: Sequence[int]) -> None:
        """Have room for more PFNs, the new pages of the p2m at some that were ordinary ones."""
        self.pfns = pfns
        words = np.frombuffer(self.pages[MFN_BASE + LIST], "<u8").copy()
        for leaf in map(self.entry, leaf_pfns):
            self.write(leaf, b"\xff" * 4096)
            words[len(self.leaves)] = leaf
            self.leaves.append(leaf)
        self.write(MFN_BASE + LIST, words.tobytes())

    def _enter(self, pfn: int, entry: int) -> None:
        leaf = self.leaves[pfn // 512]
        words = np.frombuffer(self.pages[leaf], "<u8").copy()
        words[pfn % 512] = entry
        self.write(leaf, words.tobytes())

    # --- GuestFrames ---

    @property
    def max_mfn(self) -> int:
        return MAX_MFN

    def require_there(self) -> None:
        if self.has_ended:
            raise WindowBroken(domain="web1", what="it ended")

    def frame_count(self) -> int:
        return sum(type_ != XTAB for type_ in self.type_of.values())

    def map(self, mfns: memoryview) -> Mapping:
        wanted = [int(mfn) for mfn in mfns]
        there = [mfn in self.pages and mfn not in self.unmappable for mfn in wanted]
        buffer = bytearray().join(
            self.pages[mfn] if ok else bytes(4096) for mfn, ok in zip(wanted, there, strict=True)
        )
        for place, mfn in enumerate(wanted):
            self._shown[mfn].append((buffer, place * 4096))
        self._opened += 1

        def close() -> None:
            self.closed += 1
            for mfn in wanted:
                self._shown[mfn] = [shown for shown in self._shown[mfn] if shown[0] is not buffer]

        missing = tuple(place for place, ok in enumerate(there) if not ok)
        return Mapping(view=memoryview(buffer), missing=missing, close=close)

    def types(self, mfns: memoryview) -> memoryview:
        assert len(mfns) <= 1024
        words = [self.type_of.get(int(mfn), XTAB) << 28 for mfn in mfns]
        return memoryview(struct.pack(f"<{len(words)}Q", *words)).cast("Q")

    @contextmanager
    def machine_to_physical(self) -> Iterator[memoryview]:
        yield self.m2p.data.toreadonly()

    @property
    def open_mappings(self) -> int:
        return self._opened - self.closed


HOST = HostFacts(xen_major=4, xen_minor=20, cpuid_policy=bytes(48), msr_policy=bytes(32))
Change = Callable[[Machine], None]
