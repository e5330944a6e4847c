"""Map a domain's memory into the control domain; fulfils ``GuestFrames``.

Such mappings differ from ordinary memory (Linux, drivers/xen/privcmd.c): to read a frame that could
not be mapped raises SIGBUS, the kernel cannot write a frame to a file without its page cache, and a
forked child does not have the mapping.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int, c_uint64
from typing import Self

from snapvm.failures import CaptureFailed, WindowBroken
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.hypervisor.xenlib import XenFailed, failed
from snapvm.xenguest import FRAME_BYTES, TYPES_AT_ONCE, Mapping

_PROT_READ = 1
_M2P_ROUND_BYTES = 2 << 20


class XenFrames:
    """The frames of one domain; use as a context manager."""

    def __init__(self, control: XenControl, domid: int, name: str) -> None:
        self._control = control
        self._libraries = control.libraries
        self._domid = domid
        self._name = name
        self._max_mfn = control.max_mfn()
        self._handle = self._libraries.memory.xenforeignmemory_open(self._libraries.logger, 0)
        if not self._handle:
            raise failed("opening Xen's interface to foreign memory")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._libraries.memory.xenforeignmemory_close(self._handle)

    @property
    def max_mfn(self) -> int:
        """See ``GuestFrames.max_mfn``."""
        return self._max_mfn

    def require_there(self) -> None:
        """See ``GuestFrames.require_there``."""
        info = self._info()
        if info.is_shut_down and not info.is_suspended:
            raise WindowBroken(domain=self._name, what="it shut down or crashed")

    def frame_count(self) -> int:
        """See ``GuestFrames.frame_count``."""
        return self._info().total_pages

    def map(self, mfns: memoryview) -> Mapping:
        """See ``GuestFrames.map``."""
        count = len(mfns)
        asked = (c_uint64 * count).from_buffer_copy(mfns)
        errors = (c_int * count)()
        library, handle = self._libraries.memory, self._handle
        address = library.xenforeignmemory_map(
            handle, self._domid, _PROT_READ, count, asked, errors
        )
        if not address:
            raise self._failed(f"mapping {count} frames")
        memory = (ctypes.c_uint8 * (count * FRAME_BYTES)).from_address(address)
        return Mapping(
            view=memoryview(memory).cast("B"),
            missing=_set_places(errors),
            close=lambda: library.xenforeignmemory_unmap(handle, address, count),
        )

    def types(self, mfns: memoryview) -> memoryview:
        """See ``GuestFrames.types``."""
        count = len(mfns)
        if count > TYPES_AT_ONCE:
            raise ValueError(f"the types of {count} frames at once")
        words = (c_uint64 * count).from_buffer_copy(mfns)
        control = self._libraries.control
        if control.xc_get_pfn_type_batch(self._control.handle, self._domid, count, words) < 0:
            raise self._failed("asking for the types of frames")
        return memoryview(bytes(words)).cast("Q")

    @contextmanager
    def machine_to_physical(self) -> Iterator[memoryview]:
        """See ``GuestFrames.machine_to_physical``."""
        guest = self._libraries.guest
        address = guest.xc_map_m2p(self._control.handle, self._max_mfn, _PROT_READ, None)
        if not address or address == ctypes.c_void_p(-1).value:
            raise self._failed("mapping the machine-to-physical table")
        size_bytes = -(-self._max_mfn * 8 // _M2P_ROUND_BYTES) * _M2P_ROUND_BYTES
        memory = (c_uint64 * self._max_mfn).from_address(address)
        try:
            yield memoryview(memory).cast("B").cast("Q")
        finally:
            self._libraries.libc.munmap(address, size_bytes)

    def read(self, mfn: int) -> bytes:
        """Return one frame's bytes."""
        mapping = self.map(memoryview(mfn.to_bytes(8, "little")).cast("Q"))
        try:
            if mapping.missing:
                raise self._failed(f"mapping machine frame {mfn:#x}")
            return bytes(mapping.view)
        finally:
            mapping.close()

    def _info(self) -> DomainInfo:
        try:
            info = self._control.info(self._domid)
        except XenFailed as failure:
            raise CaptureFailed(domain=self._name, why=str(failure)) from failure
        if info is None or info.is_dying:
            raise WindowBroken(domain=self._name, what="somebody destroyed it, or it rebooted")
        return info

    def _failed(self, what: str) -> CaptureFailed:
        return CaptureFailed(domain=self._name, why=str(failed(what)))


def _set_places(errors: ctypes.Array[c_int]) -> tuple[int, ...]:
    """Return the places with an error; that there are none, as nearly always, is found quickly."""
    if not bytes(errors).strip(b"\0"):
        return ()
    return tuple(place for place, error in enumerate(errors) if error)
