"""The frames that a PV vCPU's context names: read them, and turn them from MFNs to PFNs.

A context (struct vcpu_guest_context, xen.git xen/include/public/arch-x86/xen.h) holds the roots of
its page tables, the frames of its GDT and, for vCPU 0 while it is suspended, the frame of
start_info in its third argument register.  A running guest has MFNs there, an image PFNs
(xg_sr_save_x86_pv.c, write_one_vcpu_basic; the offsets were checked against the headers of Xen 4.17
to 4.20).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

import numpy as np

from snapvm.memory.normalise import FrameMap
from snapvm.memory.pagingmode import FRAME_SHIFT
from snapvm.refusals import BadImage

GDT_MAX_ENTRIES: Final = 7168
"""FIRST_RESERVED_GDT_ENTRY: the entries from here on belong to Xen."""
_GDT_PER_FRAME: Final = 512
_GDT_FRAMES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextLayout:
    """The byte offsets of fields in a context, and of two fields in start_info."""

    context_bytes: int
    word: Struct
    start_info: int
    """user_regs.rdx or edx."""
    gdt_frames: int
    gdt_ents: int
    cr1: int | None
    """ctrlreg[1], the root of the user's tables with bit 0 set; only a 64-bit guest has it."""
    cr3: int
    start_info_store: int
    start_info_console: int


LAYOUTS: Final = {
    8: ContextLayout(
        context_bytes=5168,
        word=Struct("<Q"),
        start_info=616,
        gdt_frames=4832,
        gdt_ents=4960,
        cr1=4992,
        cr3=5008,
        start_info_store=56,
        start_info_console=72,
    ),
    4: ContextLayout(
        context_bytes=2800,
        word=Struct("<I"),
        start_info=524,
        gdt_frames=2640,
        gdt_ents=2704,
        cr1=None,
        cr3=2728,
        start_info_store=44,
        start_info_console=52,
    ),
}
"""The layouts by the width of the guest's words in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuFrames:
    """The frames that one context names: MFNs of a running guest, PFNs of an image."""

    vcpu_id: int
    root: int
    user_root: int | None
    gdt_entries: int
    gdt_frames: tuple[int, ...]
    """As many as ``gdt_entries`` need, 16 at most."""
    start_info: int
    """Means something for vCPU 0 only."""


def vcpu_frames(vcpu_id: int, context: bytes, width_bytes: int) -> VcpuFrames:
    """Read the frames from a context of the right length."""
    layout = LAYOUTS[width_bytes]

    def word(offset: int) -> int:
        return int(layout.word.unpack_from(context, offset)[0])

    entries = word(layout.gdt_ents)
    count = min(-(-entries // _GDT_PER_FRAME), _GDT_FRAMES)
    cr3 = word(layout.cr3)
    # A 32-bit guest's CR3 is rotated, to hold frames above 4 GiB (xen_cr3_to_pfn, arch-x86_32.h).
    root = cr3 >> FRAME_SHIFT if width_bytes == 8 else (cr3 >> 12 | cr3 << 20) & 0xFFFFFFFF
    cr1 = 0 if layout.cr1 is None else word(layout.cr1)
    return VcpuFrames(
        vcpu_id=vcpu_id,
        root=root,
        user_root=cr1 >> FRAME_SHIFT if cr1 & 1 else None,
        gdt_entries=entries,
        gdt_frames=tuple(word(layout.gdt_frames + n * width_bytes) for n in range(count)),
        start_info=word(layout.start_info),
    )


def canonicalise_context(vcpu_id: int, context: bytes, frames: FrameMap, *, origin: str) -> bytes:
    """Return a 64-bit guest's context with PFNs in place of its MFNs.

    Raises `BadImage`, with ``origin`` as its path and the offset in the context, when the context
    names a frame that the domain does not own: such a context cannot be restored.
    """
    layout = LAYOUTS[8]
    found = vcpu_frames(vcpu_id, context, 8)
    if found.gdt_entries > GDT_MAX_ENTRIES:
        why = f"vCPU {vcpu_id} has a GDT of {found.gdt_entries} entries"
        raise BadImage(path=origin, offset_bytes=layout.gdt_ents, why=why)
    out = bytearray(context)

    def put(offset: int, mfn: int, what: str, *, shift: int = 0, bits: int = 0) -> None:
        pfns, is_owned = frames.pfns_of(np.array([mfn], np.uint64))
        if not is_owned[0]:
            why = f"{what} of vCPU {vcpu_id} is machine frame {mfn:#x}, which it does not own"
            raise BadImage(path=origin, offset_bytes=offset, why=why)
        layout.word.pack_into(out, offset, int(pfns[0]) << shift | bits)

    if vcpu_id == 0:
        put(layout.start_info, found.start_info, "start_info")
    for number, mfn in enumerate(found.gdt_frames):
        put(layout.gdt_frames + number * 8, mfn, f"GDT frame {number}")
    put(layout.cr3, found.root, "the root table", shift=FRAME_SHIFT)
    # Bit 0 must be set: Xen's saver ignores it, but the restorer checks it (process_vcpu_basic).
    user_root = int(layout.word.unpack_from(context, layout.cr1 or 0)[0]) >> FRAME_SHIFT
    if user_root:
        put(layout.cr1 or 0, user_root, "the user's root table", shift=FRAME_SHIFT, bits=1)
    return bytes(out)
