"""Read from a PV guest which frames it has: from its own p2m, and from Xen's table of owners."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

import numpy as np

from snapvm import memoryroom
from snapvm.memory.framestore import ORIGIN, require_plausible, words
from snapvm.memory.normalise import FrameMap, owned
from snapvm.memory.p2m import P2m, P2mRoots, read_p2m
from snapvm.memory.pagingmode import FRAME_BYTES, Marks, Words
from snapvm.refusals import BadImage
from snapvm.xenguest import GuestFrames, Mapping

_P2M_BYTES: Final = 64 << 20
"""How much memory a p2m may take on any host; it is that of a guest of 32 GiB."""
_P2M_PART: Final = 4
"""A larger p2m may take a quarter of the memory that the host can spare."""
_ENTRY_BYTES: Final = 8
_NO_WORDS: Final = np.empty(0, np.uint64)


class GuestReader:
    """The tables of one guest; all but `close` raise ``BadImage`` for one that is inconsistent."""

    def __init__(self, frames: GuestFrames) -> None:
        """Map Xen's machine-to-physical table; `close` unmaps it."""
        self._frames = frames
        self._stack = ExitStack()
        self._p2m_mappings: dict[bytes, Mapping] = {}
        self._m2p = words(self._stack.enter_context(frames.machine_to_physical()))
        # Asked now, and not in the pause: by then the capture has taken memory itself.
        self._most_bytes = max(_P2M_BYTES, memoryroom.available_bytes() // _P2M_PART)

    def close(self) -> None:
        """End all mappings; harmless when it was done before."""
        self.unmap_p2m()
        self._m2p = _NO_WORDS  # an array over the mapping must not outlive it
        self._stack.close()

    def unmap_p2m(self) -> None:
        """End the mappings of the p2m's frames."""
        for mapping in self._p2m_mappings.values():
            mapping.close()
        self._p2m_mappings.clear()

    @property
    def max_mfn(self) -> int:
        """The number of machine frames of the host."""
        return self._frames.max_mfn

    def require_room(self) -> None:
        """Raise ``BadImage`` for a guest with too many frames, which need not stand still for that.

        Its p2m has an entry for each of them at least.  How many more, is seen when it is read.
        """
        least_bytes = self._frames.frame_count() * _ENTRY_BYTES
        if least_bytes > self._most_bytes:
            least, most = least_bytes >> 20, self._most_bytes >> 20
            why = f"its p2m takes {least} MiB, and this host can spare {most} MiB for it"
            raise BadImage(path=ORIGIN, offset_bytes=0, why=why)

    def p2m(self, shared_info: bytes) -> P2m:
        """Read the guest's p2m as it is now, if this host can spare the memory for it."""
        roots = P2mRoots.of(shared_info)
        return read_p2m(
            roots,
            self._p2m_frames,
            max_mfn=self.max_mfn,
            most_bytes=self._most_bytes,
            origin=ORIGIN,
        )

    def owned(self, p2m: P2m) -> Marks:
        """Ask Xen now which frames of a p2m the guest owns."""
        return owned(p2m.entries, self._m2p, max_mfn=self.max_mfn)

    def frame_map(self, p2m: P2m) -> FrameMap:
        """Ask Xen now which frames of a p2m the guest owns, and return their map."""
        return FrameMap.build(p2m.entries, self._m2p, max_mfn=self.max_mfn)

    def pfns(self, p2m: P2m) -> Words:
        """Return the PFNs that have a frame, as the guest says; see `require_plausible`."""
        pfns = np.flatnonzero(p2m.entries < np.uint64(self.max_mfn)).view(np.uint64)
        require_plausible(self._frames, len(pfns))
        return pfns

    def _p2m_frames(self, mfns: Words) -> Words:
        """Return frames of the p2m, which stay mapped: they are read again in the pause."""
        asked = np.ascontiguousarray(mfns)
        mapping = self._p2m_mappings.get(asked.tobytes())
        if mapping is None:
            mapping = self._frames.map(asked.data)
            if mapping.missing:
                mapping.close()
                mfn = int(mfns[mapping.missing[0]])
                why = f"machine frame {mfn:#x} of its p2m cannot be mapped"
                raise BadImage(path=ORIGIN, offset_bytes=0, why=why)
            self._p2m_mappings[asked.tobytes()] = mapping
        return words(mapping.view).reshape(-1, FRAME_BYTES // 8)
