"""Capture a PVH domain by Xen's own saver, which writes its memory while it runs (`xensaver`).

Such a guest has page tables of its own frame numbers, and Xen notes for the saver what it writes.
So nothing has to be corrected, and none of the copies is needed that a PV guest costs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from snapvm import imageroom
from snapvm.failures import WindowBroken
from snapvm.hypervisor import xenconfig, xenothers
from snapvm.hypervisor.base import Freeze, StreamImage
from snapvm.hypervisor.xencapture import XenJob
from snapvm.hypervisor.xensaver import LiveSaver
from snapvm.imageformats import XL_FILE, XL_SAVE
from snapvm.model import MemoryRecord

WAY = "precopy by Xen's own saver while it runs, the last of it while it stands still"


class XenPvhCapture:
    """Most of memory is written while the domain runs, the rest in the pause; see ``Capture``."""

    method = WAY

    def __init__(self, job: XenJob, image: StreamImage) -> None:
        self._job = job
        self._image = image
        self._pages = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Write what can be written before the pause; the end of the block ends the saver."""
        job = self._job
        job.standstill().require_unasked()
        with ExitStack() as stack:
            stack.callback(self._image.close)
            with job.failing():
                definition = xenconfig.for_image(job.config, job.info.total_pages)
                self._fd = self._image.begin(job.folder / XL_FILE, definition)
                self._rings = job.rings()
                libraries, domid = job.control.libraries, job.info.domid
                self._saver = LiveSaver(libraries, domid, self._fd, self._has_room)
                stack.enter_context(self._saver.copying(self._tell))
            yield

    def _tell(self) -> None:
        written_bytes = os.fstat(self._fd).st_size
        memory_bytes = self._job.domain.memory_bytes
        self._job.progress.advance(min(written_bytes, memory_bytes), memory_bytes)

    def _has_room(self) -> bool:
        """Tell whether the guest may change all of its memory again, and that can be written."""
        try:
            free_bytes = imageroom.free_bytes(self._job.folder)
        except OSError:  # the next write will say why
            return False
        return free_bytes >= 2 * self._job.domain.memory_bytes + imageroom.SPARE_BYTES

    @contextmanager
    def window(
        self,
        *,
        leave_standing: bool = False,
        freeze: Freeze | None = None,  # noqa: ARG002 - no agent
    ) -> Iterator[None]:
        """See ``Capture.window``."""
        job = self._job
        with job.failing():
            job.flush()
            self._saver.come_to_suspend()
        with job.standstill().suspended(leave_standing=leave_standing):
            with job.failing():
                job.settle(self._rings)
            self._pages = self._owned_pages()
            yield

    def arm(self) -> None:
        """Write the memory that has changed since, and the state of the vCPUs."""
        with self._job.clock.part("memory"), self._job.failing():
            self._saver.finish()
            # Pages of a domain that is being destroyed are not there, and nothing says so.
            if self._owned_pages() != self._pages:
                raise WindowBroken(domain=self._job.domain.name, what="somebody destroyed it")
            # That one may have been told of pages which our saver was not told of.
            if xenothers.are_saving(self._job.info.domid):
                what = "somebody else is saving or migrating it"
                raise WindowBroken(domain=self._job.domain.name, what=what)

    def _owned_pages(self) -> int:
        info = self._job.control.info(self._job.info.domid)
        if info is None or info.is_dying:
            raise WindowBroken(domain=self._job.domain.name, what="somebody destroyed it")
        return info.total_pages

    def give_up(self) -> None:
        """See ``Capture.give_up``."""
        self._saver.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: bring the image to the disk."""
        with self._job.failing():
            written = self._image.end_stream()
            if written.restored_frames > self._job.info.total_pages:
                # It was given memory while it was written, or has other frames than it had; xl
                # would not restore more of them than the configuration in the image allows.
                definition = xenconfig.for_image(self._job.config, written.restored_frames)
                self._image.redefine(definition)
        return MemoryRecord(file=XL_FILE, format=XL_SAVE, size_bytes=written.size_bytes)
