"""The head of an xl image of a running guest: written early, and corrected when it stands still."""

from __future__ import annotations

from typing import BinaryIO, Final

import numpy as np

from snapvm import durable
from snapvm.memory.framestore import ORIGIN
from snapvm.memory.normalise import FrameMap
from snapvm.memory.p2m import P2m
from snapvm.memory.pagingmode import Words
from snapvm.memory.xenimage import ImageWriter
from snapvm.memory.xenwriter import LEAST_P2M_ROOM, DomainHead, p2m_bytes
from snapvm.refusals import BadImage
from snapvm.xenguest import HostFacts

_P2M_ROOM: Final = 1 << 14
"""How many frames the p2m may grow by while its guest is copied; they stand for 32 GiB."""


class ImageHead:
    """The head of one image; both methods raise ``BadImage`` for a p2m that cannot be written."""

    def __init__(self, file: BinaryIO, writer: ImageWriter, host: HostFacts) -> None:
        self._file = file
        self._writer = writer
        self._host = host
        self._written: DomainHead | None = None
        self._end = 0
        """The offset behind the head.  The last thing in it is the record of the p2m's frames."""

    def write_early(self, p2m: P2m, frame_map: FrameMap) -> None:
        """Write the head while the guest runs, with room for a p2m that grows."""
        self._write(p2m, frame_map, room=_P2M_ROOM)

    def write_final(self, p2m: P2m, frame_map: FrameMap) -> None:
        """Make the head true for a guest that stands still; its p2m may have moved, or grown."""
        if self._written is None:
            self._write(p2m, frame_map, room=0)
        else:
            self._correct(self._written, p2m, _leaf_pfns(p2m, frame_map))

    def _write(self, p2m: P2m, frame_map: FrameMap, *, room: int) -> None:
        head = DomainHead(
            xen_major=self._host.xen_major,
            xen_minor=self._host.xen_minor,
            cpuid_policy=self._host.cpuid_policy,
            msr_policy=self._host.msr_policy,
            end_pfn=p2m.end_pfn,
            p2m_pfns=_leaf_pfns(p2m, frame_map),
            p2m_room=room,
        )
        self._writer.begin(head)
        self._written = head
        self._end = self._file.tell()

    def _correct(self, head: DomainHead, p2m: P2m, pfns: Words) -> None:
        room = head.p2m_room + len(head.p2m_pfns) - len(pfns)
        if room < LEAST_P2M_ROOM or head.end_pfn > p2m.end_pfn:
            why = "its table of frames changed its size while it was captured; try again"
            raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
        data = p2m_bytes(p2m.end_pfn, pfns, room=room)
        durable.rewrite(self._file.fileno(), memoryview(data), self._end - len(data))
        self._writer.end_pfn = p2m.end_pfn


def _leaf_pfns(p2m: P2m, frame_map: FrameMap) -> Words:
    """Return the PFNs of the p2m's own frames; ``BadImage`` when one is not the guest's."""
    pfns, is_owned = frame_map.pfns_of(p2m.leaf_mfns)
    if not is_owned.all():
        mfn = int(p2m.leaf_mfns[np.argmin(is_owned)])
        why = f"its p2m lies in machine frame {mfn:#x}, which it does not own"
        raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
    return pfns
