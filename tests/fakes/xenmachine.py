"""A Xen host's memory with one PV guest in it: the guest of ``xen_builders``, not yet canonical.

Frames are addressed by MFN.  A mapping shows what stands in memory later, as a real one does: a
write goes into every mapping that is open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from snapvm.xenguest import HostFacts, Mapping, Standing, TscFacts, VcpuParts
from tests.unit.memory import xen_builders as built
from tests.unit.memory.xen_builders import MFN_BASE, OWNED, P2M, Guest

MAX_MFN = 0x2000
SHARED_INFO_MFN = 0x10
FOREIGN_MFN = 0x20
LIST_LIST, LIST = 30, 31
"""PFNs of the two upper levels of the guest's p2m tree."""
_LEVELS = {1: 1, 2: 2, 3: 3, 4: 4, 0xC: 4}


@dataclass
class Machine:
    """See above; fulfils ``GuestFrames``."""

    guest: Guest = field(default_factory=Guest)
    closed: int = 0
    unmappable: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.type_of: dict[int, int] = {}
        self.m2p = np.full(MAX_MFN, (1 << 64) - 1, np.uint64)
        self._open: list[tuple[bytearray, list[int]]] = []
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
        if self.guest.types[pfn] not in _LEVELS:
            return page
        words = np.frombuffer(page, "<u8").copy()
        present = words & 1 != 0
        words[present] += np.uint64(MFN_BASE << 12)
        return words.tobytes()

    def shared_info(self, pfns: int = built.LAST_PFN + 1, *, generation: int = 0) -> bytes:
        """Return the guest's shared_info page, with a p2m tree."""
        page = bytearray(4096)
        struct.pack_into("<QQ", page, 3088, pfns, MFN_BASE + LIST_LIST)
        struct.pack_into("<Q", page, 3128, generation)
        return bytes(page)

    def standing(self) -> Standing:
        """Return the guest's state with MFNs in its context."""
        context = bytearray(self.guest.vcpu)
        for offset, shift in ((616, 0), (4832, 0), (4992, 12), (5008, 12)):
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
        for buffer, mfns in self._open:
            for place, mapped in enumerate(mfns):
                if mapped == mfn:
                    buffer[place * 4096 : place * 4096 + 4096] = page

    def move(self, pfn: int, mfn: int) -> None:
        """Give a PFN another machine frame, as ballooning out and in does."""
        old = MFN_BASE + pfn
        self.m2p[old], self.m2p[mfn] = (1 << 64) - 1, pfn
        self.type_of[old], self.type_of[mfn] = 0xF, 0
        self.pages[mfn] = b"moved!!!" * 512
        leaf = MFN_BASE + P2M + pfn // 512
        words = np.frombuffer(self.pages[leaf], "<u8").copy()
        words[pfn % 512] = mfn
        self.write(leaf, words.tobytes())

    # --- GuestFrames ---

    @property
    def max_mfn(self) -> int:
        return MAX_MFN

    def map(self, mfns: memoryview) -> Mapping:
        wanted = [int(mfn) for mfn in mfns]
        there = [mfn in self.pages and mfn not in self.unmappable for mfn in wanted]
        buffer = bytearray().join(
            self.pages[mfn] if ok else bytes(4096) for mfn, ok in zip(wanted, there, strict=True)
        )
        entry = (buffer, wanted)
        self._open.append(entry)

        def close() -> None:
            self.closed += 1
            self._open[:] = [other for other in self._open if other is not entry]

        missing = tuple(place for place, ok in enumerate(there) if not ok)
        return Mapping(view=memoryview(buffer), missing=missing, close=close)

    def types(self, mfns: memoryview) -> memoryview:
        assert len(mfns) <= 1024
        words = [self.type_of.get(int(mfn), 0xF) << 28 for mfn in mfns]
        return memoryview(struct.pack(f"<{len(words)}Q", *words)).cast("Q")

    @contextmanager
    def machine_to_physical(self) -> Iterator[memoryview]:
        yield memoryview(self.m2p.tobytes()).cast("Q")

    @property
    def open_mappings(self) -> int:
        return len(self._open)


HOST = HostFacts(xen_major=4, xen_minor=20, cpuid_policy=bytes(48), msr_policy=bytes(32))
Change = Callable[[Machine], None]

__all__ = ["HOST", "MFN_BASE", "OWNED", "Machine"]
