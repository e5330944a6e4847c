"""Capturing a PVH domain by Xen's own saver, inside our window.

What `xl save -p`, an LVM snapshot and `xl unpause` would do one after the other: the domain
suspends itself and is paused, libxenguest (xen.git tools/include/xenguest.h) writes all of its
memory, and the LVM snapshots are made beside that.  The saver runs in this process, so it ends
with it, and the domain goes on as after any other capture.  A PVH domain has no page tables of
machine frames, so nothing of it is lost as of a PV one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_int, c_uint32, c_void_p

from snapvm.hypervisor import xenconfig
from snapvm.hypervisor.base import StreamImage
from snapvm.hypervisor.xencapture import IMAGE_FILE, IMAGE_FORMAT, XenJob
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xenlib import failed
from snapvm.model import MemoryRecord

_PLAIN_STREAM = 0
"""XC_STREAM_PLAIN."""
_NO_REPLIES = -1
_Callback = CFUNCTYPE(c_int, c_void_p)


class SaveCallbacks(Structure):
    """struct save_callbacks; a plain save that is not live calls ``suspend`` alone."""

    _fields_ = (
        ("suspend", _Callback),
        ("unused", c_void_p * 5),
        ("data", c_void_p),
    )


def save_stream(control: XenControl, domid: int, fd: int) -> None:
    """Let libxenguest write the stream of a domain that stands still; raise ``XenFailed``."""
    save = control.libraries.guest.xc_domain_save
    save.restype = c_int
    save.argtypes = (
        *(c_void_p, c_int, c_uint32, c_uint32),
        *(POINTER(SaveCallbacks), c_int, c_int),
    )
    callbacks = SaveCallbacks(suspend=_Callback(lambda _data: 1))  # it is suspended already
    ctypes.set_errno(0)
    if save(control.handle, fd, domid, 0, byref(callbacks), _PLAIN_STREAM, _NO_REPLIES):
        raise failed("writing its memory by Xen's own saver")


class XenStockCapture:
    """All memory written while the domain stands still; see ``Capture``."""

    way = "Xen's own saver while it stood still: a PVH domain"

    def __init__(self, job: XenJob, image: StreamImage) -> None:
        self._job = job
        self._image = image
        self.method = self.way

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Begin the image; leaving the block closes it."""
        job = self._job
        try:
            with job.failing():
                definition = xenconfig.for_image(job.config, job.info.total_pages)
                self._fd = self._image.begin_stream(job.folder / IMAGE_FILE, definition)
                self._rings = job.rings()
            yield
        finally:
            self._image.close_stream()

    @contextmanager
    def window(self, *, leave_standing: bool = False) -> Iterator[None]:
        """See ``Capture.window``."""
        with self._job.suspended(self._rings, leave_standing=leave_standing):
            yield

    def arm(self) -> None:
        """Write all of memory."""
        job = self._job
        with job.clock.part("memory"), job.failing():
            save_stream(job.control, job.info.domid, self._fd)

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: bring the image to the disk."""
        with self._job.failing():
            size_bytes = self._image.end_stream()
        return MemoryRecord(file=IMAGE_FILE, format=IMAGE_FORMAT, size_bytes=size_bytes)
