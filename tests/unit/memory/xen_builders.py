"""A small PV domain and its image, encoded by hand: the readers' input and the writer's oracle.

The bytes are packed here from the specifications and share nothing with snapvm.memory, so that a
number that is wrong there cannot be wrong here in the same way.

The domain has PFNs 0 to 599: 590 and up are ballooned out.  Its L4 (PFN 10) leads through 11 and 12
to the L1 tables 13 and 14, which map PFN n at 0xffff888000000000 + n * 4096, tables read-only; its
user L4 is 15.  PFN 1 is start_info, 2 and 3 the rings, 4 the GDT, 5 and 6 hold the p2m.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
LAST_PFN = 599
OWNED = 590
START_INFO, STORE, CONSOLE, GDT, P2M, L4, L3, L2, L1, USER_L4 = 1, 2, 3, 4, 5, 10, 11, 12, 13, 15
MFN_BASE = 0x1000
XTAB = 0xF
NOWHERE = (1 << 64) - 1
KERNEL_SLOT = 273
CONFIG = '{"c_info":{"type":"pv","name":"web1"}}'
RW, RO = 0x67, 0x65
FRAME = 0x000FFFFFFFFFF000
"""Of an entry of a page table: the bits that say which frame."""


def record(type_: int, body: bytes = b"") -> bytes:
    """One record of either stream."""
    return struct.pack("<II", type_, len(body)) + body + bytes(-len(body) % 8)


def page(values: dict[int, int]) -> bytes:
    """A page of 64-bit entries, zero but for some."""
    words = np.zeros(512, "<u8")
    for index, value in values.items():
        words[index] = value
    return words.tobytes()


def _pages() -> dict[int, bytes]:
    random = np.random.default_rng(7)
    pages = {pfn: random.bytes(4096) for pfn in range(OWNED)}
    pages[20] = pages[21] = bytes(4096)
    start_info = bytearray(4096)
    start_info[:14] = b"xen-3.0-x86_64"
    struct.pack_into("<Q", start_info, 56, STORE)
    struct.pack_into("<Q", start_info, 72, CONSOLE)
    pages[START_INFO] = bytes(start_info)
    p2m = np.full(1024, NOWHERE, "<u8")
    p2m[:OWNED] = np.arange(OWNED) + MFN_BASE
    pages[P2M], pages[P2M + 1] = p2m[:512].tobytes(), p2m[512:].tobytes()
    tables = {L4, L3, L2, L1, L1 + 1, USER_L4}
    pages[L4] = page({KERNEL_SLOT: L3 << 12 | RW})
    pages[L3] = page({0: L2 << 12 | RW})
    pages[L2] = page({0: L1 << 12 | RW, 1: L1 + 1 << 12 | RW})
    for half in range(2):
        pfns = range(half * 512, min(half * 512 + 512, OWNED))
        pages[L1 + half] = page({n % 512: n << 12 | (RO if n in tables else RW) for n in pfns})
    pages[USER_L4] = page({})
    return pages


def _types() -> dict[int, int]:
    types = dict.fromkeys(range(OWNED), 0) | dict.fromkeys(range(OWNED, LAST_PFN + 1), XTAB)
    return types | {L4: 0xC, L3: 3, L2: 2, L1: 1, L1 + 1: 1, USER_L4: 0xC}


def _vcpu() -> bytearray:
    context = bytearray(np.random.default_rng(8).bytes(5168))
    struct.pack_into("<Q", context, 616, START_INFO)
    struct.pack_into("<16Q", context, 4832, GDT, *[0] * 15)
    struct.pack_into("<Q", context, 4960, 16)
    struct.pack_into("<Q", context, 4992, USER_L4 << 12 | 1)
    struct.pack_into("<Q", context, 5008, L4 << 12)
    return context


@dataclass
class Guest:
    """The domain's image; change what you like before `encode`."""

    pages: dict[int, bytes] = field(default_factory=_pages)
    types: dict[int, int] = field(default_factory=_types)
    vcpu: bytearray = field(default_factory=_vcpu)
    config: bytes = CONFIG.encode() + b"\0"
    per_record: int = 128
    p2m_pfns: list[int] = field(default_factory=lambda: [P2M, P2M + 1])
    order: list[int] = field(default_factory=lambda: list(range(LAST_PFN + 1)))
    cpuid: bytes = bytes(range(48))
    msrs: bytes = bytes(range(32))
    shared_info: bytes = bytes(4096)

    def page_records(self) -> bytes:
        """All pages, in records of ``per_record``."""
        out = b""
        for first in range(0, len(self.order), self.per_record):
            pfns = self.order[first : first + self.per_record]
            entries = [self.types[pfn] << 60 | pfn for pfn in pfns]
            data = [self.pages[pfn] for pfn in pfns if self.types[pfn] not in {0xD, 0xE, 0xF}]
            body = struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *entries) + b"".join(data)
            out += record(1, body)
        return out

    def before_pages(self) -> list[bytes]:
        """The pieces up to the first page."""
        return [
            b"Xen saved domain, xl format\n \0 \r"
            + struct.pack("<IIII", 0x01020304, 3, 0, 4 + len(self.config))
            + struct.pack("<I", len(self.config))
            + self.config,
            struct.pack(">QII", 0x4C6962786C466D74, 2, 0) + record(1),
            struct.pack(">QIIHHI", (1 << 64) - 1, 0x58454E46, 3, 0, 0, 0)
            + struct.pack("<IHHII", 1, 12, 0, 4, 20),
            record(2, struct.pack("<BBHI", 8, 4, 0, 0)),
            record(0x11, self.cpuid) + record(0x12, self.msrs) + record(0x10),
            record(
                3,
                struct.pack("<II", 0, LAST_PFN)
                + struct.pack(f"<{len(self.p2m_pfns)}Q", *self.p2m_pfns),
            ),
        ]

    def after_pages(self) -> list[bytes]:
        """The pieces from the last page on."""
        vcpu = struct.pack("<II", 0, 0)
        return [
            record(8, struct.pack("<IIQII", 1, 2_000_000, 123456789, 7, 0)),
            record(7, self.shared_info),
            record(4, vcpu + bytes(self.vcpu)),
            record(5, vcpu + bytes(64)),
            record(6, vcpu + bytes(832)),
            record(0),
            record(0),
        ]

    def encode(self) -> bytes:
        """The whole file."""
        return b"".join([*self.before_pages(), self.page_records(), *self.after_pages()])


def uncanonicalise(tables: Words, p2m: Words) -> Words:
    """Do what a restore does: give present entries the machine frames of their PFNs."""
    present = tables & np.uint64(1) != 0
    pfns = np.where(present, (tables & np.uint64(FRAME)) >> np.uint64(12), 0)
    mfns = p2m[pfns] << np.uint64(12)
    return np.where(present, tables & ~np.uint64(FRAME) | mfns, tables)


def hvm_context(*vcpus: int) -> bytes:
    """The state of an HVM domain's machine, with so many bytes for each part as you like."""
    parts = [(1, 0, bytes(40)), *((2, vcpu, bytes(100)) for vcpu in vcpus), (0, 0, b"")]
    return b"".join(struct.pack("<HHI", kind, n, len(body)) + body for kind, n, body in parts)


HVM_PARAMS = record(0xA, struct.pack("<IIQQ", 1, 0, 1, 2))


def hvm_image(*records: bytes, kind: str = "pvh", model: bytes = b"") -> bytes:
    """Return an image of an HVM or PVH domain with two pages; it has two vCPUs if not told else.

    ``model`` is the record of its QEMU.
    """
    config = CONFIG.replace('"pv"', f'"{kind}"').encode() + b"\0"
    head = Guest(config=config).before_pages()
    domain = head[2][:24] + struct.pack("<IHHII", 2, 12, 0, 4, 20)
    state = records or (record(9, hvm_context(0, 1)), HVM_PARAMS)
    tail = [Guest(order=[1, 2]).page_records(), *state, record(0), model, record(0)]
    return b"".join([*head[:2], domain, head[4], *tail])
