"""Capturing a libvirt domain with QEMU's background-snapshot: the pause holds no memory at all.

The domain is suspended first, so that the window is ours (QEMU restores the run state it found).
In the window QEMU buffers the state of the devices and write-protects guest memory; after it the
guest runs, and QEMU copies every page before the guest may change it (QEMU,
migration/migration.c, bg_migration_thread).  ``mapped-ram`` must be off: together they give an
image whose memory is all zero.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from snapvm.hypervisor import domainxml, userfault
from snapvm.hypervisor.base import ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.drainpipe import Drainpipe
from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken
from snapvm.hypervisor.qmp import Qmp
from snapvm.model import Domain, MemoryRecord

CAPABILITY = "background-snapshot"
STREAM_NAME = "snapvm"
_XML_SECURE = 1
_XML_MIGRATABLE = 8
ARM_POLL_SECONDS = 0.002
DRAIN_POLL_SECONDS = 0.1
ARM_LIMIT_SECONDS = 60.0
_ENDED = ("completed", "failed", "cancelled")


class NotPossible(Exception):
    """This host or domain cannot do it; the text says why."""


class BackgroundCapture:
    """Memory streams out behind a running guest; see ``Capture``."""

    way = "background: QEMU's background-snapshot, memory written behind the running guest"

    def __init__(self, job: CaptureJob) -> None:
        self._job = job
        self.method = self.way
        self._qmp = Qmp(job.handle)
        self._begun = False
        self._ended = False

    @contextmanager
    def prepared(self, image: ImageWriter) -> Iterator[None]:
        """Probe, open the image and the pipe; leaving the block puts QEMU back as it was.

        Raises ``NotPossible`` before anything has happened.
        """
        self._image = image
        with ExitStack() as stack:
            self._permission = stack.enter_context(
                _enabled(self._qmp, self._job.domain, self._job.run_dir)
            )
            target = image.begin(self._job.image, self._definition(), self._cookie())
            self._pipe = stack.enter_context(Drainpipe(target, image.filter_argv))
            if image.filter_argv:
                self.method += ", compressed by zstd"
            self._qmp.give_descriptor(STREAM_NAME, self._pipe.writer)
            self._pipe.close_writer()
            stack.callback(self._end)
            yield

    @contextmanager
    def window(self, *, leave_standing: bool = False) -> Iterator[None]:
        """See ``Capture.window``."""
        with self._job.pause.ended_by_resume(leave_standing=leave_standing):
            self._job.pause.suspend()
            self._job.check_drives()
            yield

    def arm(self) -> None:
        """Start the stream and wait until the guest may run: devices buffered, memory protected.

        ``active`` alone does not say so; the page counters, which begin to grow after that, do.
        """
        deadline = time.monotonic() + ARM_LIMIT_SECONDS
        try:
            with self._job.clock.part("memory"):
                self._begun = True
                self._qmp.execute("migrate", {"uri": f"fd:{STREAM_NAME}"})
                while not self._is_armed():
                    if time.monotonic() > deadline:
                        raise self._job.failed("QEMU did not protect the guest's memory in time")
                    time.sleep(ARM_POLL_SECONDS)
                # A round trip lets QEMU run the work it has scheduled before it counts pages.
                self._qmp.execute("query-status")
        except LibvirtFailed as why:
            raise self._job.failed(str(why)) from why
        finally:
            self._permission.close()

    def _is_armed(self) -> bool:
        state = self._qmp.execute("query-migrate")
        if state.get("status") in ("failed", "cancelled"):
            raise self._job.failed(state.get("error-desc", "the stream failed"))
        pages = state.get("ram", {})
        has_counted = pages.get("normal", 0) + pages.get("duplicate", 0) > 0
        status = state.get("status")
        return bool(status == "completed" or (status == "active" and has_counted))

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: wait for the end of the stream."""
        deadline = time.monotonic() + self._job.limit_seconds
        while (state := self._stream_state()).get("status") not in _ENDED:
            self._check_drain(deadline)
            self._tell(state)
            time.sleep(DRAIN_POLL_SECONDS)
        if state["status"] != "completed":
            raise self._job.failed(state.get("error-desc", f"the stream was {state['status']}"))
        self._ended = True
        try:
            self._pipe.finish(max(1.0, deadline - time.monotonic()))
            size_bytes = self._image.end()
        except OSError as why:
            raise self._job.failed(f"the image could not be written: {why}") from why
        return self._job.record(size_bytes)

    def _stream_state(self) -> dict[str, Any]:
        try:
            return dict(self._qmp.execute("query-migrate"))
        except LibvirtFailed as why:
            raise self._job.failed(str(why)) from why

    def _check_drain(self, deadline: float) -> None:
        if self._pipe.failure is not None:
            raise self._job.failed(f"the image could not be written: {self._pipe.failure}")
        if time.monotonic() > deadline:
            raise self._job.failed(f"it took longer than {self._job.limit_seconds:g} s")

    def _tell(self, state: dict[str, Any]) -> None:
        ram = state.get("ram", {})
        total_bytes = ram.get("total", self._job.domain.memory_bytes)
        self._job.progress.advance(total_bytes - ram.get("remaining", total_bytes), total_bytes)

    def _end(self) -> None:
        """End a stream that is not wanted any more; the guest's pages are free again then."""
        if not self._begun:
            self._qmp.execute("closefd", {"fdname": STREAM_NAME})
        elif not self._ended:
            cancel(self._qmp)

    def _definition(self) -> str:
        with spoken():
            return str(self._job.handle.XMLDesc(_XML_SECURE | _XML_MIGRATABLE))

    def _cookie(self) -> str:
        """Return libvirt's save cookie: the CPU as QEMU runs it, which a restore must match."""
        cpu = domainxml.cpu_element(self._job.domain.definition)
        return f"<cookie>{cpu}</cookie>" if cpu else ""


@contextmanager
def _enabled(qmp: Qmp, domain: Domain, run_dir: Path) -> Iterator[ExitStack]:
    """Have QEMU ready for a background snapshot for the block; raise ``NotPossible``.

    Yields the host's permission, which may be closed before the block ends.
    """
    foreign = domainxml.foreign_memory_writer(domain.definition)
    if foreign:
        raise NotPossible(foreign)
    with ExitStack() as stack:
        try:
            permission = stack.enter_context(ExitStack())
            permission.enter_context(userfault.allowed(run_dir))
            stack.enter_context(qmp.only_capabilities(CAPABILITY))
        except (OSError, LibvirtFailed) as why:
            raise NotPossible(str(why)) from why
        yield permission


def why_not(qmp: Qmp, domain: Domain, run_dir: Path) -> str:
    """Try, without any effect on the domain; say why it is not possible, or nothing."""
    try:
        with _enabled(qmp, domain, run_dir):
            return ""
    except NotPossible as why:
        return str(why)


def cancel(qmp: Qmp) -> None:
    """End the stream that is going on, and wait until it has ended."""
    qmp.execute("migrate_cancel")
    deadline = time.monotonic() + ARM_LIMIT_SECONDS
    while qmp.execute("query-migrate").get("status", "none") not in (*_ENDED, "none"):
        if time.monotonic() > deadline:
            return
        time.sleep(ARM_POLL_SECONDS)


def abandon(qmp: Qmp) -> None:
    """Put right what a killed snapvm left: its stream, and a capability libvirt does not know.

    Left on, the capability would make the next `virsh save` or migration fail.
    """
    if qmp.capabilities().get(CAPABILITY):
        cancel(qmp)
        qmp.set_capabilities({CAPABILITY: False})
