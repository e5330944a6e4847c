"""The frames that a vCPU's context names, of either width, and those that are foreign."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from snapvm.memory.normalise import FrameMap
from snapvm.memory.xenvcpu import canonicalise_context, vcpu_frames
from snapvm.refusals import BadImage
from tests.unit.memory import xen_builders as build
from tests.unit.memory.xen_builders import Guest


@pytest.mark.parametrize("offset", [616, 4832, 4992, 5008])
def test_a_context_with_a_foreign_frame_is_an_error_with_its_place(offset: int) -> None:
    guest = Guest()
    frames = FrameMap.build(
        np.arange(20, dtype=np.uint64), np.arange(20, dtype=np.uint64), max_mfn=30
    )
    context = bytearray(guest.vcpu)
    assert vcpu_frames(0, bytes(context), 8).gdt_frames == (build.GDT,)
    struct.pack_into("<Q", context, offset, 25 << 12 | 1 if offset > 4900 else 25)
    with pytest.raises(BadImage, match="machine frame 0x19") as raised:
        canonicalise_context(0, bytes(context), frames, origin="vCPU 0 of web1")
    assert raised.value.offset_bytes == offset
    if offset == 616:  # start_info is vCPU 0's alone
        other = canonicalise_context(1, bytes(context), frames, origin="")
        assert vcpu_frames(1, other, 8).start_info == 25


def test_a_32_bit_context_has_a_rotated_root() -> None:
    context = bytearray(2800)
    frame = 0x123456
    struct.pack_into("<I", context, 2728, (frame << 12 | frame >> 20) & 0xFFFFFFFF)
    struct.pack_into("<I", context, 2704, 513)
    found = vcpu_frames(3, bytes(context), 4)
    assert (found.root, found.user_root, len(found.gdt_frames)) == (frame, None, 2)
