"""Capturing a libvirt domain with QEMU's background-snapshot: the pause holds no memory at all.

The domain is suspended first, so that the window is ours (QEMU restores the run state it found).
In the window QEMU buffers the state of the devices and write-protects guest memory; after it the
guest runs, and QEMU copies every page before the guest may change it (QEMU,
migration/migration.c, bg_migration_thread).  ``mapped-ram`` must be off: together they give an
image whose memory is all zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from snapvm.hypervisor import domainxml, migrationstream, userfault
from snapvm.hypervisor.base import ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.migrationstream import MigrationStream, NotPossible, State
from snapvm.hypervisor.qemusettings import MigrationSettings
from snapvm.model import MemoryRecord

SETTINGS = MigrationSettings(capabilities=("background-snapshot",))
ARM_LIMIT_SECONDS = 60.0
ASK_SECONDS = 0.1
"""QEMU is asked as often at least: a small guest's stream may fit into the pipe."""


class BackgroundCapture:
    """Memory streams out behind a running guest; see ``Capture``."""

    way = "background: QEMU's background-snapshot, memory written behind the running guest"

    def __init__(self, job: CaptureJob, why: str) -> None:
        self._job = job
        self._why = why
        self._stream = MigrationStream(job)

    @property
    def method(self) -> str:
        """See ``Capture.method``."""
        return self.way + self._stream.how + self._why

    @staticmethod
    @contextmanager
    def possible(ground: Ground) -> Iterator[ExitStack]:
        """Have QEMU ready for it for the block; raise ``NotPossible`` and change nothing.

        Yields the host's permission, which may be closed before the block ends.
        """
        migrationstream.require_possible(ground.lender.monitor)
        foreign = domainxml.foreign_memory_writer(ground.domain.definition)
        if foreign:
            raise NotPossible(foreign)
        with ExitStack() as stack:
            try:
                permission = stack.enter_context(ExitStack())
                permission.enter_context(userfault.allowed(ground.run_dir))
                stack.enter_context(ground.lender.lent(SETTINGS))
            except (OSError, LibvirtFailed) as why:
                raise NotPossible(str(why)) from why
            yield permission

    @contextmanager
    def prepared(self, image: ImageWriter) -> Iterator[None]:
        """Probe, open the image and the pipe; leaving the block puts QEMU back as it was."""
        # Held: while the guest stands still the processors are LVM's.
        with self.possible(self._job) as self._permission, self._stream.prepared(image, held=True):
            yield

    @contextmanager
    def window(self, *, leave_standing: bool = False) -> Iterator[None]:
        """See ``Capture.window``."""
        with self._job.pause.ended_by_resume(leave_standing=leave_standing):
            self._job.pause.suspend()
            try:
                yield
            finally:
                # QEMU answers to a resume only when it has the pages that its own devices change.
                self._stream.release()

    def arm(self) -> None:
        """Start the stream and wait until the guest may run: devices buffered, memory protected.

        ``active`` alone does not say so; the page counters, which begin to grow after that, do.
        Pages are then in the pipe too, so QEMU is asked only when something new is there.
        """
        seen_bytes = 0

        def wait_for_more(_state: State) -> None:
            nonlocal seen_bytes
            seen_bytes = self._stream.wait_for_bytes(seen_bytes, ASK_SECONDS)

        try:
            with self._job.clock.part("memory"):
                self._stream.begin()
                self._stream.wait_for(
                    _is_armed,
                    limit_seconds=ARM_LIMIT_SECONDS,
                    poll_seconds=0,
                    tick=wait_for_more,
                )
                # QEMU gives the guest back its run state in work that it has only scheduled.
                self._stream.settle()
        finally:
            self._permission.close()

    def give_up(self) -> None:
        """See ``Capture.give_up``."""
        self._stream.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: wait for the end of the stream."""
        return self._stream.finish()


def _is_armed(state: State) -> bool:
    pages = state.get("ram", {})
    has_counted = pages.get("normal", 0) + pages.get("duplicate", 0) > 0
    status = state.get("status")
    return bool(status == "completed" or (status == "active" and has_counted))
