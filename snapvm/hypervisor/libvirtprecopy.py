"""Capturing a libvirt domain by QEMU's live migration, held at the moment it stops the guest.

Memory goes into the image while the guest runs, over and over what it changed meanwhile.  With
``pause-before-switchover`` QEMU waits when it has stopped the guest and its disks are drained and
flushed; the LVM snapshots come then, and the rest of memory beside them (QEMU,
migration/migration.c, migration_completion_precopy).

A guest that changes its memory faster than it is written is stopped when all of it was written once
and a while is over: what is left then is finite, and written in the pause.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from snapvm import imageroom
from snapvm.hypervisor import migrationstream
from snapvm.hypervisor.base import ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.migrationstream import MigrationStream, NotPossible, State
from snapvm.hypervisor.qemusettings import MigrationSettings
from snapvm.model import DomainState, MemoryRecord

UNLIMITED = 1 << 40
"""Bytes a second; QEMU's own limit is 128 MiB/s."""
SETTINGS = MigrationSettings(
    capabilities=("pause-before-switchover",),
    parameters={"max-bandwidth": UNLIMITED, "downtime-limit": 100},
)
"""Milliseconds that the rest of memory may take; it is written beside the LVM snapshots."""
_HELD = "pre-switchover"
_MOST_ROUNDS = 3
"""The stream may become so many times as long as memory before the guest is stopped."""
_FIRST_PASS = 1
"""How often QEMU has asked what the guest changed (``dirty-sync-count``) while it writes all of
memory: once, at the beginning (QEMU, migration/ram.c, ram_init_bitmaps)."""
_SPARE_BYTES = 48 << 20
"""What is on its way to the file, and the devices; ``imageroom`` wants more beyond memory."""


class PrecopyCapture:
    """Memory while the guest runs, the last of it in the window; see ``Capture``."""

    way = "precopy: memory written while the guest runs, the last of it in the pause"

    def __init__(self, job: CaptureJob, why: str) -> None:
        self._job = job
        self._why = why
        self._stream = MigrationStream(job)
        self._stopped = ""
        self._changes_since: float | None = None
        """Since when only what the guest changes is written: all of memory was, once."""

    @property
    def method(self) -> str:
        """See ``Capture.method``."""
        return self.way + self._stream.how + self._stopped + self._why

    @staticmethod
    @contextmanager
    def possible(ground: Ground) -> Iterator[None]:
        """Have QEMU ready for it for the block; raise ``NotPossible`` and change nothing."""
        with ready(ground, SETTINGS):
            yield

    @contextmanager
    def prepared(self, image: ImageWriter) -> Iterator[None]:
        """Open the image and the pipe; leaving the block puts QEMU back as it was."""
        with self.possible(self._job), self._stream.prepared(image):
            yield

    @contextmanager
    def window(self, *, leave_standing: bool = False) -> Iterator[None]:
        """See ``Capture.window``; before it most of memory is written."""
        job = self._job
        # QEMU does not let a guest run that it holds: it has to let go of it first.
        ending = job.pause.ended_by_resume(
            leave_standing=leave_standing, when_failed=self._stream.let_go
        )
        with ending:
            job.progress.phase(f"capturing memory of {job.domain.name}")
            with job.pause.owners_kept():
                self._stream.begin()
                self._stream.wait_for(
                    lambda state: state.get("status") == _HELD,
                    limit_seconds=job.limit_seconds,
                    tick=self._tick,
                )
            stopped_at = job.pause.stopped_at()
            if stopped_at is not None and not self._stopped:
                job.clock.add_part("suspend", stopped_at, time.monotonic())
            yield

    def _tick(self, state: State) -> None:
        """Tell how far it is; stop the guest when it is not going to converge by itself."""
        self._stream.tell(state)
        self._job.pause.refuse_owners()
        if self._stopped or self._job.domain.state is not DomainState.RUNNING:
            return
        ram = state.get("ram", {})
        if self._changes_since is None and ram.get("dirty-sync-count", 0) > _FIRST_PASS:
            self._changes_since = time.monotonic()
        why = self._why_stop()
        if why:
            remaining_mb = ram.get("remaining", 0) / 1e6
            self._stopped = f"; the guest was stopped {why}, with {remaining_mb:.0f} MB to go"
            self._job.pause.suspend()

    def _why_stop(self) -> str:
        """Say why the guest must not change more of its memory; an empty text when it may.

        All of memory may have been changed since QEMU last looked, and QEMU does not count that:
        so much has to be free, in the first pass too.  The first pass lasts as long as memory is
        large: its time is no reason, the guest would stand still for all that is not yet written.
        """
        memory_bytes = self._job.domain.memory_bytes
        free_bytes = imageroom.free_bytes(self._job.folder)
        if free_bytes < memory_bytes + _SPARE_BYTES:
            return f"since there was room for {free_bytes / 1e6:.0f} MB more"
        since = self._changes_since
        if since is None:
            return ""
        seconds = time.monotonic() - since
        if seconds > self._job.precopy_limit_seconds:
            return f"after {seconds:.0f} s of writing again what it had changed"
        if self._stream.written_bytes > _MOST_ROUNDS * memory_bytes:
            return "since it changed memory faster than it was written"
        return ""

    def arm(self) -> None:
        """Beside the LVM snapshots: let QEMU write the rest of memory and the devices."""
        with self._job.clock.part("memory"):
            self._stream.go_on(_HELD)
            self._stream.wait_for(is_completed, limit_seconds=self._job.limit_seconds)

    def give_up(self) -> None:
        """See ``Capture.give_up``."""
        self._stream.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: the stream has ended, the image is made whole."""
        return self._stream.finish()


@contextmanager
def ready(ground: Ground, settings: MigrationSettings) -> Iterator[None]:
    """Have QEMU set for a stream for the block; raise ``NotPossible`` when it cannot write one."""
    migrationstream.require_possible(ground.lender.monitor)
    with ExitStack() as stack:
        try:
            stack.enter_context(ground.lender.lent(settings))
        except (OSError, LibvirtFailed) as why:
            raise NotPossible(str(why)) from why
        yield


def is_completed(state: State) -> bool:
    """Whether QEMU has written all of the stream."""
    return bool(state.get("status") == "completed")
