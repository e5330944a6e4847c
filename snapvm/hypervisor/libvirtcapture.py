"""Capturing a libvirt domain by libvirt's own means: external memory, disks left to us.

``snapshot='manual'`` (libvirt 8.2) makes libvirt write the memory while the guest runs, and leave
the domain paused with its disks drained and flushed (docs/formatsnapshot).  The LVM snapshots
come then, and the resume.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from snapvm import retry
from snapvm.clock import WindowClock
from snapvm.errors import CaptureFailed, StuckPaused, WindowBroken
from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link, RunEvents, spoken, wait_for
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState, MemoryRecord, Progress

IMAGE_FILE = "memory.save"
IMAGE_FORMAT = "libvirt-save"
EVENT_LIMIT_SECONDS = 5.0

_STATE_RUNNING = 1
_STATE_PAUSED = 3
# Flags of virDomainSnapshotCreateXML (libvirt/libvirt-domain-snapshot.h).
_NO_METADATA = 4
_LIVE = 256


def snapshot_xml(definition: str, image: Path) -> str:
    """Describe the snapshot: memory into ``image``, every drive left to the caller.

    Every drive has to be listed: libvirt would make external files for the others.
    """
    drives = "".join(
        f"<disk name={quoteattr(drive.target)} snapshot='{_wanted(drive)}'/>"
        for drive in domainxml.drives_of(definition)
    )
    return (
        "<domainsnapshot>"
        f"<memory snapshot='external' file={quoteattr(str(image))}/>"
        f"<disks>{drives}</disks>"
        "</domainsnapshot>"
    )


def _wanted(drive: domainxml.Drive) -> str:
    return "no" if drive.readonly or drive.device in ("cdrom", "floppy") else "manual"


class WatchedPause:
    """Makes a domain stand still, measures it by QEMU's own events, and makes it run again."""

    def __init__(self, domain: Domain, handle: Any, events: RunEvents, clock: WindowClock) -> None:
        self._domain = domain
        self._handle = handle
        self._events = events
        self._clock = clock
        self._was_running = domain.state is DomainState.RUNNING
        self._first = len(events.seen())

    @contextmanager
    def ended_by_resume(self) -> Iterator[None]:
        """Run the block, which stops the domain; then make it run again, whatever happened."""
        try:
            yield
        finally:
            with shielded():
                asked_at = time.monotonic()
                if self._was_running:
                    retry.resume(self._resume)
                self._measure(asked_at)
        self._check(asked_at)

    def _resume(self) -> None:
        try:
            with spoken():
                if self._handle.state()[0] == _STATE_PAUSED:
                    self._handle.resume()
                if self._handle.state()[0] == _STATE_RUNNING:
                    return
        except LibvirtFailed as failure:
            raise StuckPaused(domain=self._domain.name, why=str(failure)) from failure
        raise StuckPaused(domain=self._domain.name, why="libvirt does not show it running")

    def _measure(self, asked_at: float) -> None:
        if not self._was_running:
            return
        events = self._events.wait_for("RESUME", self._first, EVENT_LIMIT_SECONDS)
        stops = [event.at for event in events if event.name == "STOP"]
        resumes = [event.at for event in events if event.name == "RESUME"]
        if stops and resumes:
            self._clock.stopped(stops[0])
            self._clock.resumed(resumes[-1])
            self._clock.add_part("resume", asked_at, resumes[-1])

    def _check(self, asked_at: float) -> None:
        """Raise ``WindowBroken`` when somebody else let the domain run inside the window."""
        events = self._events.seen()[self._first :]
        resumes = [event for event in events if event.name == "RESUME"]
        expected = 1 if self._was_running else 0
        early = [event for event in resumes if event.at < asked_at - 0.001]
        if early or len(resumes) > expected:
            raise WindowBroken(domain=self._domain.name, what="somebody else made it run")
        if self._was_running and not resumes:
            raise WindowBroken(domain=self._domain.name, what="QEMU did not say that it runs again")


class ExternalCapture:
    """Memory by libvirt's external snapshot: precopy while running, the last pass paused."""

    method = "libvirt: external memory snapshot (live precopy), disks beside it"

    def __init__(
        self,
        link: Link,
        domain: Domain,
        pause: WatchedPause,
        folder: Path,
        *,
        clock: WindowClock,
        progress: Progress,
        limit_seconds: float,
    ) -> None:
        self._link = link
        self._domain = domain
        self._handle = link.connection.lookupByUUIDString(domain.uuid)
        self._pause = pause
        self._image = folder / IMAGE_FILE
        self._clock = clock
        self._progress = progress
        self._limit_seconds = limit_seconds

    @contextmanager
    def window(self) -> Iterator[None]:
        """See ``Capture.window``."""
        with self._pause.ended_by_resume():
            self._write_memory()
            now = self._handle.XMLDesc(0)
            if domainxml.drives_of(now) != domainxml.drives_of(self._domain.definition):
                raise WindowBroken(domain=self._domain.name, what="its drives were changed")
            yield

    def arm(self) -> None:
        """Nothing is left to do: the memory is in the image when the domain stands still."""

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: libvirt has closed the image."""
        size_bytes = self._image.stat().st_size
        return MemoryRecord(file=IMAGE_FILE, format=IMAGE_FORMAT, size_bytes=size_bytes)

    def _write_memory(self) -> None:
        self._progress.phase(f"capturing memory of {self._domain.name}")
        deadline = time.monotonic() + self._limit_seconds
        xml = snapshot_xml(self._domain.definition, self._image)
        flags = _NO_METADATA | (_LIVE if self._domain.state is DomainState.RUNNING else 0)

        def create() -> None:
            with spoken():
                self._handle.snapshotCreateXML(xml, flags)

        def tick() -> None:
            if time.monotonic() > deadline:
                raise CaptureFailed(
                    domain=self._domain.name,
                    why=f"the guest changes its memory faster than it can be written; "
                    f"given up after {self._limit_seconds:g} s",
                )
            self._tell()

        try:
            wait_for(create, tick=tick, abort=self._abort)
        except LibvirtFailed as failure:
            raise CaptureFailed(domain=self._domain.name, why=str(failure)) from failure

    def _tell(self) -> None:
        try:
            with spoken():
                job = self._handle.jobStats()
        except LibvirtFailed:
            return
        done_bytes = job.get("memory_processed", 0)
        self._progress.advance(done_bytes, job.get("memory_total", self._domain.memory_bytes))

    def _abort(self) -> None:
        try:
            with spoken():
                self._handle.abortJob()
        except LibvirtFailed:
            return


class DisksOnlyCapture:
    """No memory: the domain only stands still for its disks, or is off anyway."""

    def __init__(
        self, domain: Domain, handle: Any, pause: WatchedPause | None, clock: WindowClock
    ) -> None:
        self.method = "none: disks only" if pause else "none: the domain was shut off"
        self._domain = domain
        self._handle = handle
        self._pause = pause
        self._clock = clock

    @contextmanager
    def window(self) -> Iterator[None]:
        """See ``Capture.window``."""
        if self._pause is None:
            yield
            self._check_still_off()
            return
        with self._pause.ended_by_resume():
            self._suspend()
            yield

    def arm(self) -> None:
        """There is no memory to arm for."""

    def drain(self) -> None:
        """There is no memory."""

    def _suspend(self) -> None:
        if self._domain.state is not DomainState.RUNNING:
            return
        try:
            with self._clock.part("suspend"), spoken():
                self._handle.suspend()
        except LibvirtFailed as failure:
            raise CaptureFailed(domain=self._domain.name, why=str(failure)) from failure

    def _check_still_off(self) -> None:
        with spoken():
            if self._handle.isActive():
                raise WindowBroken(domain=self._domain.name, what="somebody started it")
