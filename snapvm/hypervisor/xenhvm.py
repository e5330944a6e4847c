"""Capture an HVM or PVH domain by Xen's own saver, which writes memory while it runs (`xensaver`).

Such a guest has page tables of its own frame numbers, and Xen notes for the saver what it writes.
So nothing has to be corrected, and none of the copies is needed that a PV guest costs.  HVM has a
QEMU besides, which is stopped in the pause and whose state is kept with the memory (`xenqemu`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from snapvm import imageroom
from snapvm.errors import SnapvmError
from snapvm.hypervisor import xenconfig, xenothers
from snapvm.hypervisor.base import Freeze, StreamImage, XenImages
from snapvm.hypervisor.xencapture import DESTROYED, XenJob
from snapvm.hypervisor.xenqemu import DeviceModel
from snapvm.hypervisor.xenrings import Rings
from snapvm.hypervisor.xensaver import LiveSaver, nobody_tells
from snapvm.imageformats import XL_FILE, XL_SAVE
from snapvm.model import MemoryRecord

WAY = "precopy by Xen's own saver while it runs, the last of it while it stands still"


class XenHvmCapture:
    """Most of memory is written while the domain runs, the rest in the pause; see ``Capture``."""

    method = WAY
    is_brief = False

    def __init__(
        self,
        job: XenJob,
        image: StreamImage,
        rings: Rings,
        saver: LiveSaver,
        model: DeviceModel | None,
    ) -> None:
        self._job = job
        self._image = image
        self._rings = rings
        self._saver = saver
        self._model = model
        """None for PVH."""
        self._state = b""
        """That of the device model."""
        self._pages = 0

    @staticmethod
    @contextmanager
    def prepared(job: XenJob, images: XenImages) -> Iterator[XenHvmCapture]:
        """Write what can be written before the pause; the end of the block ends the saver."""
        job.standstill().require_unasked()
        with ExitStack() as stack:
            with job.failing():
                definition = xenconfig.for_image(job.config, job.info.total_pages)
                image = images.of_stream(job.folder / XL_FILE, definition)
                stack.callback(image.close)
                rings = job.rings()
                _require_told(job, rings)
                # One that has gone since it was looked at must be missed: the image would lack it.
                model = DeviceModel(job.info.domid) if job.info.is_hvm else None
                saver = _saver(job, image, model)
                stack.enter_context(saver.copying(partial(_tell, job, image.descriptor)))
            yield XenHvmCapture(job, image, rings, saver, model)

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
                job.require_config()
            self._pages = job.info_now().total_pages
            yield

    def arm(self) -> None:
        """Write the memory that has changed since, the state of the vCPUs and of QEMU."""
        job = self._job
        with job.clock.part("memory"), job.failing():
            self._saver.finish()
            if self._model is not None:
                self._state = self._model.state()
            # Pages of a domain that is being destroyed are not there, and nothing says so.
            if job.info_now().total_pages != self._pages:
                raise job.broken(DESTROYED)
            # That one may have been told of pages which our saver was not told of.
            if xenothers.are_saving(job.info.domid):
                raise job.broken("somebody else is saving or migrating it")

    def give_up(self) -> None:
        """See ``Capture.give_up``."""
        self._saver.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: bring the image to the disk."""
        with self._job.failing():
            written = self._image.end_stream(self._state)
            # It may have been given memory while it was written, or have other frames than it had.
            self._job.allow(self._image, written.restored_frames)
        return MemoryRecord(file=XL_FILE, format=XL_SAVE, size_bytes=written.size_bytes)


def _saver(job: XenJob, image: StreamImage, model: DeviceModel | None) -> LiveSaver:
    libraries, domid, room = job.control.libraries, job.info.domid, partial(_has_room, job)
    tell_writes = nobody_tells if model is None else model.tell_writes
    return LiveSaver(libraries, domid, image.descriptor, room, tell_writes)


def _require_told(job: XenJob, rings: Rings) -> None:
    """Raise ``CaptureFailed`` for a guest that Xen would suspend below drivers that use its disks.

    xl saves such a one, and it finds no disks when it is restored.
    """
    if rings.references and not job.control.suspends_itself(job.info.domid):
        raise job.failed(
            "it uses its disks as Xen's, and cannot be asked to suspend itself now: it may be in "
            "its boot loader, or asleep"
        )


def _tell(job: XenJob, descriptor: int) -> None:
    """Report how much of an image is written."""
    written_bytes = os.fstat(descriptor).st_size
    memory_bytes = job.domain.memory_bytes
    job.progress.advance(min(written_bytes, memory_bytes), memory_bytes)


def _has_room(job: XenJob) -> bool:
    """Tell whether the guest may change all of its memory again, and that can be written."""
    try:
        free_bytes = imageroom.free_bytes(job.folder)
    except SnapvmError:  # the next write will say why
        return False
    return free_bytes >= 2 * job.domain.memory_bytes + imageroom.SPARE_BYTES
