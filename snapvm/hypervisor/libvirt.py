"""The driver for libvirt/QEMU domains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from snapvm import crashpoint, durable, retry
from snapvm.attention import StuckPaused
from snapvm.clock import WindowClock
from snapvm.errors import UnknownDomain
from snapvm.failures import CaptureFailed
from snapvm.hypervisor import (
    captureways,
    hostprocessor,
    libvirtcapturable,
    libvirtdomain,
    libvirtdrives,
    libvirtimages,
    libvirtneighbours,
    libvirtrestore,
    libvirtstart,
    libvirtversions,
    migrationstream,
    qemurun,
    qemusettings,
    sidexml,
    userfault,
    witness,
)
from snapvm.hypervisor.base import Capture, Drives, ImageWriter, MemoryImage, Reliance
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtagent import LibvirtAgent
from snapvm.hypervisor.libvirtdisksonly import DisksOnlyCapture, OffCapture
from snapvm.hypervisor.libvirtlink import (
    XML_SECURE,
    LibvirtFailed,
    Link,
    doing,
    is_busy,
    open_link,
    spoken,
)
from snapvm.hypervisor.pause import WatchedPause, refuse_busy, require_resumable
from snapvm.hypervisor.qemusettings import Lender
from snapvm.hypervisor.qmp import Qmp
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind, Progress, SidePlace
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings

_RESTORE_RUNNING = 2
_RESTORE_PAUSED = 4
_START_PAUSED = 1


class LibvirtHypervisor:
    """Domains of one libvirt; see ``Hypervisor`` for what each method promises."""

    kind = HypervisorKind.LIBVIRT

    def __init__(self, link: Link, settings: Settings) -> None:
        self._link = link
        self._settings = settings
        self.agent = LibvirtAgent(self._handle_if_known, settings.agent_limit_seconds)

    def find(self, name: str) -> Domain:
        """Return the domain as it is now; raise ``UnknownDomain``."""
        try:
            with spoken():
                return libvirtdomain.of(self._link.connection.lookupByName(name))
        except UnicodeEncodeError:  # libvirt's names are UTF-8
            raise UnknownDomain(domain=name) from None
        except LibvirtFailed as failure:
            if failure.is_unknown_domain:
                raise UnknownDomain(domain=name) from failure
            raise DomainRefused(domain=name, why=str(failure)) from failure

    def name_of(self, uuid: DomainUuid) -> str:
        """See ``Hypervisor.name_of``."""
        try:
            with spoken():
                return str(self._link.connection.lookupByUUIDString(uuid).name())
        except LibvirtFailed as failure:
            if failure.is_unknown_domain:
                return ""
            raise DomainRefused(domain=uuid, why=str(failure)) from failure

    def drives(self, domain: Domain) -> Drives:
        """Return its drives; raise ``DiskRefused`` for one that cannot be captured."""
        return libvirtdrives.of(self._link, domain)

    def boots_as(self, domain: Domain) -> Domain:
        """See ``Hypervisor.boots_as``; a transient domain is booted from its present definition."""
        return libvirtimages.as_booted(domain, self._handle_if_known(domain))

    def relying(self, domain: Domain) -> Iterable[Reliance]:
        """See ``Hypervisor.relying``."""
        return libvirtneighbours.relying(self._link, domain)

    def side_places(self, domain: Domain) -> tuple[SidePlace, ...]:
        """See ``Hypervisor.side_places``."""
        return sidexml.places(domain.definition, domain.uuid)

    def check_capture(self, domain: Domain, *, with_memory: bool) -> None:
        """Raise ``DomainRefused`` when the domain cannot be captured now."""
        libvirtcapturable.require(self._link, domain)
        if with_memory and domain.state.has_memory:
            is_compressed = bool(self._settings.compress.argv)
            libvirtcapturable.require_memory(self._link, domain, is_compressed=is_compressed)

    def foresee(self, domain: Domain) -> str:
        """See ``Hypervisor.foresee``; QEMU is asked what it can do."""
        with self._failing_as_capture(domain):
            handle = self._handle(domain)
            ground = Ground(
                domain=domain,
                handle=handle,
                lender=self._lender(domain, handle),
                run_dir=self._settings.run_dir,
                is_compressed=bool(self._settings.compress.argv),
            )
            return captureways.foresee(ground, self._settings.capture)

    @contextmanager
    def capture(
        self,
        domain: Domain,
        folder: Path,
        *,
        image: MemoryImage | None,
        clock: WindowClock,
        progress: Progress,
        domain_ends: bool = False,
    ) -> Iterator[Capture]:
        """Prepare a capture; see ``Hypervisor.capture``."""
        handle = self._handle(domain)
        if domain.state is DomainState.SHUTOFF:
            yield OffCapture(domain, handle)
            return
        with self._failing_as_capture(domain), ExitStack() as stack:
            if qemurun.of(handle) != domain.run:
                raise LibvirtFailed("it has ended, or was started anew, meanwhile", 0)
            names = ("STOP", "RESUME", *witness.WATCHED)
            events = stack.enter_context(self._link.run_events(handle, names))
            job = CaptureJob(
                domain=domain,
                handle=handle,
                lender=self._lender(domain, handle),
                pause=WatchedPause(domain, handle, events, clock),
                folder=folder,
                run_dir=self._settings.run_dir,
                domain_ends=domain_ends,
                is_compressed=bool(self._settings.compress.argv),
                clock=clock,
                progress=progress,
                limit_seconds=self._settings.capture_limit_seconds,
                window_limit_seconds=self._settings.window_limit_seconds,
                precopy_limit_seconds=self._settings.precopy_limit_seconds,
            )
            if isinstance(image, ImageWriter):
                yield captureways.choose(stack, job, image, self._settings.capture)
                libvirtimages.warn_unreadable(self._link, domain, job.image)
            else:
                yield DisksOnlyCapture(job)

    def check_processor(
        self,
        domain: Domain,
        cookie: str,  # noqa: ARG002 - `check_restore` has libvirt judge it
        processor: bytes,  # noqa: ARG002 - of xl's images
        versions: Mapping[str, str],
    ) -> None:
        """See ``Hypervisor.check_processor``: of what libvirt knows nothing about."""
        hostprocessor.require(domain, versions.get(libvirtversions.PROCESSOR, ""))

    def check_restore(
        self,
        domain: Domain,
        image: Path | None,
        *,
        memory_bytes: int = 0,  # noqa: ARG002 - a host that has too little swaps
        cookie: str = "",
        starts: bool = True,
    ) -> None:
        """Raise ``DomainRefused`` when libvirt could not start it, or would use other memory."""
        handle = self._handle_if_known(domain)
        if handle is not None:
            why = "and would start it from there, on disks that have been replaced by then"
            libvirtimages.refuse_saved(domain, handle, why)
            if domain.state.has_memory:  # `virsh save` may be in the midst of writing its memory
                refuse_busy(domain, handle)
        if image is not None:
            libvirtimages.check(self._link.connection, domain, image, cookie)
        elif starts:
            libvirtimages.refuse_lost_tpm(domain, handle)
            libvirtimages.check_boot(self._link.connection, domain, handle)

    @contextmanager
    def frozen(self, domain: Domain) -> Iterator[None]:
        """See ``Hypervisor.frozen``; a domain that its owner has paused meanwhile stays paused."""
        with doing("suspended", domain):
            handle = self._handle_if_known(domain)
            state = DomainState.SHUTOFF if handle is None else libvirtdomain.state_of(handle)
            if state.has_memory is not domain.state.has_memory:
                raise LibvirtFailed(f"it is {state} by now", 0)
            self._require_unchanged(domain, handle)
        if handle is None or state is not DomainState.RUNNING:
            yield
            return
        try:
            require_resumable(domain, handle)
            with doing("suspended", domain), crashpoint.around("suspend"):
                handle.suspend()
            yield
        except BaseException:
            with shielded():
                self.resume(domain)
            raise

    def resume(self, domain: Domain) -> None:
        """Make a paused domain run; raise ``StuckPaused`` when it does not."""
        retry.resume(lambda: self._resume(domain))

    def touched(self) -> tuple[DomainUuid, ...]:
        """See ``Hypervisor.touched``; a changed setting of the host has a note in such a domain."""
        return qemusettings.noted(self._settings.run_dir)

    def abandon(self, domain: Domain) -> None:
        """End the stream of a dead snapvm; put back QEMU's settings and the host's permission.

        The order matters: a stream without permission to protect memory leaves the guest stopped.
        """
        folder = self._settings.run_dir
        with durable.failing_as_storage(folder), ExitStack() as last:
            last.callback(userfault.put_back, folder)
            with doing("freed of what a killed snapvm left in it", domain):
                handle = self._handle_if_known(domain)
                self._end_stream(domain, handle)
                self._lender(domain, handle).put_back()

    def stop(self, domain: Domain) -> None:
        """End the domain at once; harmless when it is off."""
        libvirtstart.end(self._link, domain)

    def restore(self, domain: Domain, image: Path, *, paused: bool, channels: int = 1) -> None:
        """Start the domain from a memory image; only libvirt 11.2 and later have channels."""
        flags = _RESTORE_PAUSED if paused else _RESTORE_RUNNING
        watched = libvirtstart.watched(self._link, domain, "restored", paused=paused)
        with watched, crashpoint.around("restore"):
            if channels > 1:
                libvirtrestore.restore(self._link.connection, image, channels, flags)
            else:
                self._link.connection.restoreFlags(str(image), None, flags)

    def start(self, domain: Domain, *, paused: bool) -> None:
        """Boot the domain from its disks; a transient domain is created again."""
        flags = _START_PAUSED if paused else 0
        watched = libvirtstart.watched(self._link, domain, "started", paused=paused)
        with watched, crashpoint.around("start"):
            handle = self._handle_if_known(domain)
            if handle is None:
                self._link.connection.createXML(domain.definition, flags)
            else:
                handle.createWithFlags(flags)

    def versions(self, domain: Domain) -> dict[str, str]:
        """See ``Hypervisor.versions``."""
        return libvirtversions.of(self._link, domain)

    # --- inside ---

    def _handle(self, domain: Domain) -> Any:
        return self._link.domain(domain.uuid)

    def _handle_if_known(self, domain: Domain) -> Any | None:
        try:
            return self._handle(domain)
        except LibvirtFailed as failure:
            if failure.is_unknown_domain:
                return None
            raise

    def _lender(self, domain: Domain, handle: Any | None) -> Lender:
        return qemusettings.lender(domain, handle, self._settings.run_dir)

    def _end_stream(self, domain: Domain, handle: Any | None) -> None:
        """End a stream of snapvm, if there may be one: the guest may be stopped while it waits."""
        if self._lender(domain, handle).is_lent() and not is_busy(handle):
            migrationstream.cancel(Qmp(handle))

    def _require_unchanged(self, domain: Domain, handle: Any | None) -> None:
        """Raise ``LibvirtFailed`` when the domain's devices have changed since they were checked.

        The preparations take minutes, in which somebody may put an overlay upon a disk.
        """
        if handle is not None and domain.definition:
            now = witness.devices(handle.XMLDesc(XML_SECURE))
            if now != witness.devices(domain.definition):
                raise LibvirtFailed("its devices were changed meanwhile", 0)

    def _resume(self, domain: Domain) -> None:
        try:
            with spoken():
                handle = self._handle(domain)
                state = libvirtdomain.state_of(handle)
                if state is DomainState.PAUSED:
                    self._end_stream(domain, handle)
                    handle.resume()
        except LibvirtFailed as failure:
            if failure.is_unknown_domain:
                raise
            raise StuckPaused(domain=domain.name, why=str(failure)) from failure
        if state in (DomainState.SHUTOFF, DomainState.CRASHED):
            raise StuckPaused(domain=domain.name, why=f"it is {state}", command="virsh start")

    @contextmanager
    def _failing_as_capture(self, domain: Domain) -> Iterator[None]:
        try:
            with spoken():
                yield
        except LibvirtFailed as failure:
            raise CaptureFailed(domain=domain.name, why=str(failure)) from failure


def open_hypervisor(settings: Settings) -> LibvirtHypervisor:
    """Connect to the libvirt of the settings; raise ``HostLacks``."""
    return LibvirtHypervisor(open_link(settings.libvirt_uri), settings)
