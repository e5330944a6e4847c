"""Capture a Xen domain: with its memory, or only with a pause for its disks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from snapvm import durable
from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, ImageNotWritten, WindowBroken
from snapvm.hypervisor import xenconfig, xendisks, xenqemu
from snapvm.hypervisor.base import Freeze, GuestImage, StreamImage, XenImages
from snapvm.hypervisor.memoryless import Memoryless
from snapvm.hypervisor.xenconfig import Config
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xendisks import Attached
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenmemory import XenFrames
from snapvm.hypervisor.xenqemu import DeviceModel
from snapvm.hypervisor.xenrings import Rings, ring_references
from snapvm.hypervisor.xenstandstill import Standstill
from snapvm.hypervisor.xenstore import XenStore
from snapvm.imageformats import XL_FILE, XL_SAVE
from snapvm.model import Domain, DomainState, ForeignPtes, MemoryRecord, Progress
from snapvm.refusals import BadImage

DESTROYED = "somebody destroyed it"


@dataclass(frozen=True, slots=True, kw_only=True)
class XenJob:
    """One capture: the domain, what it is made with, and where files go."""

    domain: Domain
    config: Config
    info: DomainInfo
    attached: Attached
    """What it had when its configuration was read."""
    control: XenControl
    store: XenStore
    folder: Path
    clock: WindowClock
    progress: Progress
    foreign_ptes: ForeignPtes

    def standstill(self) -> Standstill:
        """Return the pause, which has not begun."""
        return Standstill(self.domain, self.info.domid, self.control, self.store, self.clock)

    def rings(self) -> Rings:
        """Return the domain's rings as they are connected now; raise if its drives changed."""
        domid = self.info.domid
        if xendisks.read_vbds(self.store, domid) != self.attached.vbds:
            raise self._changed()
        return Rings(self.control.libraries, domid, self.domain.name, self._references())

    def device_model(self) -> DeviceModel | None:
        """Return the QEMU of an HVM domain, if one runs here: for the disks alone none has to."""
        domid = self.info.domid
        has_one = self.info.is_hvm and xenqemu.is_there(domid)
        return DeviceModel(domid) if has_one else None

    def settle(self, rings: Rings) -> None:
        """In the pause: check that the drives are those of the plan, and let them come to rest.

        QEMU is stopped when it has served the rings; it goes on when the pause ends
        (`xenstandstill.lift`).
        """
        with self.clock.part("drain"):
            # A drive that was just attached may have no ring yet, so numbers are compared too.
            numbers = {vbd.number for vbd in self.attached.vbds}
            if set(xendisks.vbd_numbers(self.store, self.info.domid)) != numbers:
                raise self._changed()
            if self._references() != rings.references:
                raise self._changed()
            rings.drain()
            model = self.device_model()
            if model is not None and self.domain.state is DomainState.RUNNING:
                model.stop()
            self.flush()

    def require_config(self) -> None:
        """In the pause: raise ``WindowBroken`` when the configuration lacks a device, or has more.

        A restore makes the devices that it tells of, and memory knows those that there are now.  A
        network interface that was attached while memory was copied would be dead from then on.
        """
        if xendisks.devices(self.store, self.info.domid) != self.attached.devices:
            raise self.broken("its devices were changed")

    def _references(self) -> dict[str, list[int]]:
        captured = [vbd.number for vbd in self.attached.vbds if vbd.is_captured]
        return ring_references(self.store, self.info.domid, captured)

    def _changed(self) -> WindowBroken:
        return self.broken("its drives were changed")

    def info_now(self) -> DomainInfo:
        """Return what Xen says of the domain now; raise ``WindowBroken`` when it is destroyed."""
        info = self.control.info(self.info.domid)
        if info is None or info.is_dying:
            raise self.broken(DESTROYED)
        return info

    def allow(self, image: GuestImage | StreamImage, frames: int) -> None:
        """Have the configuration in an image allow so many frames.

        xl does not restore more of them, and would say so when the domain is gone.
        """
        if frames > self.info.total_pages:
            image.redefine(xenconfig.for_image(self.config, frames))

    def flush(self) -> None:
        """Flush to the volumes what is only in this host's cache.

        This is done before the pause too, so that the pause has to flush only little.
        """
        for device in (cache for vbd in self.attached.vbds for cache in vbd.caches):
            try:
                durable.sync_device(device)
            except OSError as failure:
                raise self.failed(f"{device} could not be flushed: {failure}") from failure

    def failed(self, why: object) -> CaptureFailed:
        """Return the failure of this capture for a reason."""
        return CaptureFailed(domain=self.domain.name, why=str(why))

    def broken(self, what: str) -> WindowBroken:
        """Return the failure for what somebody else did to the domain."""
        return WindowBroken(domain=self.domain.name, what=what)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn what the libraries and the engine raise into ``CaptureFailed``."""
        try:
            yield
        except (XenFailed, BadImage) as failure:
            raise self.failed(failure) from failure
        except OSError as failure:
            raise ImageNotWritten.because(failure, self.domain.name, self.folder) from failure


@contextmanager
def capturing(domain: Domain) -> Iterator[None]:
    """Turn a failure of Xen in the block into ``CaptureFailed``."""
    try:
        yield
    except XenFailed as failure:
        raise CaptureFailed(domain=domain.name, why=str(failure)) from failure


class XenCapture:
    """Memory is copied while the domain runs, and corrected in the pause; see ``Capture``."""

    is_brief = False

    def __init__(
        self, job: XenJob, image: GuestImage, frames: XenFrames, rings: Rings, method: str
    ) -> None:
        self._job = job
        self._image = image
        self._frames = frames
        self._rings = rings
        self.method = method
        self._stays = False
        self._root = b""
        """Where its page tables began in the pause."""

    @staticmethod
    @contextmanager
    def prepared(job: XenJob, images: XenImages) -> Iterator[XenCapture]:
        """Copy what can be copied before the pause; the end of the block gives everything back."""
        job.standstill().require_unasked()
        domid = job.info.domid
        with ExitStack() as stack:
            frames = stack.enter_context(XenFrames(job.control, domid, job.domain.name))
            with job.failing():
                definition = xenconfig.for_image(job.config, job.info.total_pages)
                host = job.control.host_facts(domid)
                image = images.of_pages(job.folder / XL_FILE, definition, host, frames)
                stack.callback(image.close)
                shared_info = partial(frames.read, job.info.shared_info_mfn)
                method = image.prepare(shared_info, job.progress)
                rings = job.rings()
            yield XenCapture(job, image, frames, rings, method)

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
            self._image.rehearse(self._frames.read(job.info.shared_info_mfn))
        self._stays = leave_standing
        with job.standstill().suspended(leave_standing=leave_standing):
            with job.failing():
                job.settle(self._rings)
                job.require_config()
            yield

    def arm(self) -> None:
        """Copy the memory that has changed since, and the state of the vCPUs."""
        job = self._job
        with job.clock.part("memory"), job.failing():
            info = job.info_now()
            shared_info = self._frames.read(info.shared_info_mfn)
            standing = job.control.standing(info, shared_info)
            self._root = job.control.root(info.domid)
            self._image.catch(standing)
            self._require_root()

    def _require_root(self) -> None:
        """Raise ``WindowBroken`` when the domain is being destroyed, so that the image is useless.

        Its page tables have become ordinary pages then, and would be copied without change.
        """
        if self._job.control.root(self._job.info.domid) != self._root:
            raise self._job.broken(DESTROYED)

    def give_up(self) -> None:
        """See ``Capture.give_up``: to write memory into a file may take minutes."""
        self._image.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: write the image."""
        with self._job.failing():
            facts = self._image.write(self._job.progress)
            if self._stays:  # its memory has been read only now
                self._require_root()
            self._job.allow(self._image, facts.restored_frames)
        if facts.foreign and self._job.foreign_ptes is ForeignPtes.REFUSE:
            count = sum(facts.foreign.values())
            pages = "a page that is" if count == 1 else f"{count} pages that are"
            raise self._job.failed(
                f"it maps {pages} not its own ({', '.join(facts.foreign)}), and "
                "--foreign-ptes=refuse was asked for"
            )
        self.method += f" ({facts.changed_frames} of {facts.frames} frames in the window)"
        return MemoryRecord(
            file=XL_FILE,
            format=XL_SAVE,
            size_bytes=facts.size_bytes,
            foreign=facts.foreign,
        )


class XenPauseCapture(Memoryless):
    """A capture without memory: the domain is only paused for its disks."""

    method = "none: disks only"

    def __init__(self, job: XenJob) -> None:
        self._job = job

    @contextmanager
    def window(
        self,
        *,
        leave_standing: bool = False,
        freeze: Freeze | None = None,  # noqa: ARG002 - no agent
    ) -> Iterator[None]:
        """See ``Capture.window``."""
        with self._job.failing():
            rings = self._job.rings()
            self._job.flush()
        with self._job.standstill().paused(leave_standing=leave_standing):
            with self._job.failing():
                self._job.settle(rings)
            yield
