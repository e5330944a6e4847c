"""Capture a libvirt domain by libvirt's external snapshot of memory, with the disks left to snapvm.

``snapshot='manual'`` (libvirt 8.2) makes libvirt write the memory while the guest runs, and leave
the domain paused with its disks drained and flushed (docs/formatsnapshot).  Then the LVM snapshots
are made, and the domain is resumed.
"""

from __future__ import annotations

import logging
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapvm import imageroom
from snapvm.clock import Deadline
from snapvm.hypervisor import domainxml, migrationstream
from snapvm.hypervisor.base import Freeze, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken, wait_for
from snapvm.hypervisor.migrationstream import NotPossible
from snapvm.model import DomainState, MemoryRecord

log = logging.getLogger(__name__)

# Flags of virDomainSnapshotCreateXML (libvirt/libvirt-domain-snapshot.h).
_NO_METADATA = 4
_LIVE = 256
_MOST_ROUNDS = 10
"""The image is given up when it is this many times as long as the guest's memory."""
_LEFT_BYTES = 32 << 20
_MANUAL_SINCE = 8_002_000
"""From libvirt 8.2 on somebody else may capture the disks of a snapshot."""


def snapshot_xml(definition: str, image: Path) -> str:
    """Return libvirt's XML for a snapshot of memory into ``image``, without any drive.

    Every drive has to be listed: for others libvirt would make external files.
    """
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "memory", snapshot="external", file=str(image))
    disks = ET.SubElement(root, "disks")
    for drive in domainxml.drives_of(definition):
        ET.SubElement(disks, "disk", name=drive.target, snapshot=_wanted(drive))
    return ET.tostring(root, encoding="unicode")


def _wanted(drive: domainxml.Drive) -> str:
    return "manual" if drive.is_captured else "no"


class ExternalCapture:
    """Memory by libvirt's external snapshot: precopy while running, the last pass paused."""

    way = "libvirt: external memory snapshot (live precopy), disks beside it"
    is_brief = False

    def __init__(self, job: CaptureJob, why: str) -> None:
        self._job = job
        self.method = self.way + why

    @staticmethod
    @contextmanager
    def possible(ground: Ground) -> Iterator[None]:
        """Run the block if this libvirt can do it; raise ``NotPossible`` if it cannot."""
        if ground.is_compressed:
            raise NotPossible("libvirt writes the image itself, and cannot compress it as asked")
        with spoken():
            number = ground.handle.connect().getLibVersion()
        if number < _MANUAL_SINCE:
            raise NotPossible("this libvirt does not let others capture the disks")
        # libvirt will ask QEMU itself, so it does not matter whether QEMU answers snapvm.
        with suppress(LibvirtFailed):
            migrationstream.require_unblocked(ground.lender.monitor)
        yield

    @staticmethod
    @contextmanager
    def prepared(
        job: CaptureJob,
        image: ImageWriter,  # noqa: ARG004 - libvirt makes the image
        why: str,
    ) -> Iterator[ExternalCapture]:
        """Prepare nothing."""
        with ExternalCapture.possible(job):
            yield ExternalCapture(job, why)

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        """See ``Capture.window``; libvirt does not say beforehand when it pauses the domain."""
        job = self._job
        if freeze is not None:
            log.warning(
                "the programs in %s cannot write while its memory is written: this way to "
                "capture freezes file systems for all of it",
                job.domain.name,
            )
        with job.pause.ended_by_resume(leave_standing=leave_standing, freeze=freeze):
            self._write_memory()
            stopped_at = job.pause.stopped_at()
            if stopped_at is not None:
                job.clock.add_part("memory", stopped_at, time.monotonic())
            yield

    def arm(self) -> None:
        """Do nothing: the memory is in the image before the pause."""

    def give_up(self) -> None:
        """Do nothing: ``arm`` does not wait for anything."""

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: libvirt has closed the image."""
        try:
            size_bytes = self._job.image.stat().st_size
        except OSError as why:
            raise self._job.not_written(why) from why
        return self._job.record(size_bytes)

    def _write_memory(self) -> None:
        job = self._job
        job.progress.phase(f"capturing memory of {job.domain.name}")
        deadline = Deadline(job.limit_seconds)
        xml = snapshot_xml(job.domain.definition, job.image)
        flags = _NO_METADATA | (_LIVE if job.domain.state is DomainState.RUNNING else 0)

        def create() -> None:
            with spoken():
                job.handle.snapshotCreateXML(xml, flags)

        def tick() -> None:
            why = f"after {job.limit_seconds:g} s" if not deadline.left_seconds else self._excess()
            if why:
                raise job.failed(
                    f"the guest changes its memory faster than it can be written; given up {why}"
                )
            job.pause.refuse_owners()
            self._tell()

        try:
            with job.pause.owners_kept():
                wait_for(create, tick=tick, abort=self._abort)
        except LibvirtFailed as failure:
            raise job.failed(str(failure)) from failure

    def _excess(self) -> str:
        """Say when the image has become too long; it grows until the guest changes little.

        The file system is not to be filled for that: others, the host perhaps, write to it.
        """
        job = self._job
        free_bytes = imageroom.free_bytes(job.folder)
        if free_bytes < _LEFT_BYTES:
            return f"with {free_bytes >> 20} MiB left in the file system of its image"
        with suppress(OSError):  # libvirt has not made it yet
            rounds = job.image.stat().st_size // max(job.domain.memory_bytes, 1)
            if rounds >= _MOST_ROUNDS:
                return f"when it had been written {rounds} times"
        return ""

    def _tell(self) -> None:
        with suppress(LibvirtFailed), spoken():
            stats = self._job.handle.jobStats()
            total_bytes = stats.get("memory_total", self._job.domain.memory_bytes)
            self._job.progress.advance(stats.get("memory_processed", 0), total_bytes)

    def _abort(self) -> None:
        with suppress(LibvirtFailed), spoken():
            self._job.handle.abortJob()
