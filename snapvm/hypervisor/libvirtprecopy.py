"""Capture a libvirt domain by QEMU's live migration, held at the moment when it stops the guest.

QEMU writes memory into the image while the guest runs, and then again and again what has changed.
With ``pause-before-switchover`` QEMU waits after it has stopped the guest and its disks are drained
and flushed.  Then the LVM snapshots are made, and beside them QEMU writes the rest of memory (QEMU,
migration/migration.c, migration_completion_precopy).

A guest that changes its memory faster than QEMU writes it is stopped after a while, once all of
memory was written: the rest is finite then, and is written in the pause.

Where the guest's file systems are to be frozen, that is done near the end of the first pass: one
that changes little is stopped just after it, and no agent answers then.  QEMU only crawls until
they are frozen, so that it cannot come to that end meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from snapvm import imageroom
from snapvm.capturewords import WAS_STOPPED
from snapvm.hypervisor import migrationstream
from snapvm.hypervisor.base import Freeze, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.migrationstream import MigrationStream, NotPossible, State
from snapvm.hypervisor.qemusettings import MigrationSettings
from snapvm.model import DomainState, MemoryRecord

UNLIMITED = 1 << 40
"""In bytes per second; without a setting QEMU would write no more than 128 MiB/s."""
SETTINGS = MigrationSettings(
    capabilities=("pause-before-switchover",),
    parameters={"max-bandwidth": UNLIMITED, "downtime-limit": 100},
)
"""``downtime-limit`` is how many milliseconds the rest of memory may take in the pause, beside the
LVM snapshots."""
_HELD = "pre-switchover"
_UNTIL_FROZEN = {"downtime-limit": 1}
"""QEMU goes on for as long as it finds changes.  With 0 it would not look for any at the end of its
first pass (QEMU 7.2, migration/ram.c, ram_save_pending)."""
_CRAWLING = {"max-bandwidth": 1000}
"""QEMU writes some ten pages a second; less than ten bytes per second would mean no limit."""
_CALM_SECONDS = 0.1
"""QEMU, when it was just about to stop the guest, has done so by then."""
_NEAR_END_BYTES = 512 << 20
"""File systems are frozen when so much of the first pass is left: QEMU needs at least some 50 ms
for it, and is asked every few."""
_FROZEN_SECONDS = 5.0
"""The guest is stopped when it has been frozen this long: its programs cannot write, and Windows
goes on by itself after 10 s (VSS)."""
_MOST_ROUNDS = 3
"""The guest is stopped when the stream is this many times as long as its memory."""
_FIRST_PASS = 1
"""``dirty-sync-count`` while QEMU writes all of memory for the first time: QEMU has asked once, at
the beginning, what the guest has changed (QEMU, migration/ram.c, ram_init_bitmaps)."""
_SPARE_BYTES = 48 << 20
"""Room for what is on its way to the file, and for the devices; ``imageroom`` demands more."""


class PrecopyCapture:
    """Memory is written while the guest runs, and the last of it in the pause; see ``Capture``."""

    way = "precopy: memory written while the guest runs, the last of it in the pause"
    is_brief = False

    def __init__(self, job: CaptureJob, stream: MigrationStream, why: str) -> None:
        self._job = job
        self._stream = stream
        self._why = why
        self._stopped = ""
        self._freeze: Freeze | None = None
        self._frozen_at: float | None = None
        self._changes_since: float | None = None
        """When QEMU had written all of memory once, and began to write changes only."""

    @property
    def method(self) -> str:
        """See ``Capture.method``."""
        return self.way + self._stream.how + self._stopped + self._why

    @staticmethod
    @contextmanager
    def possible(ground: Ground) -> Iterator[None]:
        """Set QEMU up for the block; raise ``NotPossible``, and change nothing then."""
        with ready(ground, SETTINGS):
            yield

    @staticmethod
    @contextmanager
    def prepared(job: CaptureJob, image: ImageWriter, why: str) -> Iterator[PrecopyCapture]:
        """Open the image and the pipe; leaving the block puts QEMU back as it was."""
        with (
            ready(job, SETTINGS),
            MigrationStream.prepared(job, image, guest_waits=False) as stream,
        ):
            yield PrecopyCapture(job, stream, why)

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        """See ``Capture.window``; before it most of memory is written."""
        job = self._job
        self._freeze = freeze
        # A guest that QEMU holds cannot be resumed before the stream is let go.
        ending = job.pause.ended_by_resume(
            leave_standing=leave_standing, when_failed=self._stream.let_go
        )
        with ending:
            job.progress.phase(f"capturing memory of {job.domain.name}")
            with job.pause.owners_kept():
                self._prepare_freezing()
                self._stream.begin()
                self._stream.wait_for(
                    lambda state: state.get("status") == _HELD,
                    limit_seconds=job.limit_seconds,
                    tick=self._tick,
                )
            self._stream.guest_waits()
            self._require_frozen()
            stopped_at = job.pause.stopped_at()
            if stopped_at is not None and not self._stopped:
                job.clock.add_part("suspend", stopped_at, time.monotonic())
            yield

    def _tick(self, state: State) -> None:
        """Report progress; stop the guest when the stream would not converge by itself."""
        self._stream.tell(state)
        self._job.pause.refuse_owners()
        if self._stopped or self._job.domain.state is not DomainState.RUNNING:
            return
        ram = state.get("ram", {})
        if self._changes_since is None and ram.get("dirty-sync-count", 0) > _FIRST_PASS:
            self._changes_since = time.monotonic()
        why = self._why_stop()
        if why or self._is_near_end(state):
            self._hold_files_still()
        if why:
            remaining_mb = ram.get("remaining", 0) / 1e6
            self._stopped = f"; the guest {WAS_STOPPED} {why}, with {remaining_mb:.0f} MB to go"
            self._stream.guest_waits()
            self._job.pause.suspend()

    def _prepare_freezing(self) -> None:
        if self._freeze is None:
            return
        if self._job.domain.memory_bytes > _NEAR_END_BYTES:
            self._stream.set(_UNTIL_FROZEN)
        else:  # QEMU may be through with so little before it is asked
            self._freeze()
            self._frozen_at = time.monotonic()

    @staticmethod
    def _is_near_end(state: State) -> bool:
        left_bytes = state.get("ram", {}).get("remaining", _NEAR_END_BYTES)
        return bool(state.get("status") == "active" and left_bytes < _NEAR_END_BYTES)

    def _hold_files_still(self) -> None:
        """Have file systems frozen, where that is wanted, and QEMU not stop the guest meanwhile."""
        if self._freeze is None or self._frozen_at is not None:
            return
        self._stream.set(_CRAWLING)
        time.sleep(_CALM_SECONDS)
        if self._stream.is_before_the_end():
            self._job.pause.refuse_owners()
            self._freeze()
            self._frozen_at = time.monotonic()
        self._stream.set(SETTINGS.parameters)

    def _require_frozen(self) -> None:
        """Raise ``CaptureFailed`` when QEMU has stopped the guest before it was frozen."""
        if self._freeze is not None and self._frozen_at is None:
            raise self._job.failed(
                "QEMU had stopped it before its file systems were frozen: take the snapshot again, "
                "or with `--capture stop`"
            )

    def _why_stop(self) -> str:
        """Say why the guest has to be stopped; return an empty text when it may run on.

        There must always be room for all of memory: the guest may have changed all of it since QEMU
        last looked, and QEMU does not count that.  The time of the first pass is no reason to stop
        the guest, which would then stand still for all that is not written yet.
        """
        memory_bytes = self._job.domain.memory_bytes
        free_bytes = imageroom.free_bytes(self._job.folder)
        if free_bytes < memory_bytes + _SPARE_BYTES:
            return f"since there was room for {free_bytes / 1e6:.0f} MB more"
        if self._frozen_at is not None:
            frozen_seconds = time.monotonic() - self._frozen_at
            if frozen_seconds > _FROZEN_SECONDS:
                return f"after {frozen_seconds:.0f} s of frozen file systems"
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
        """Let QEMU write the rest of memory and the devices, beside the LVM snapshots."""
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
    """Set QEMU up for a stream, for the block; raise ``NotPossible`` when it cannot write one."""
    migrationstream.require_possible(ground.lender.monitor)
    with ExitStack() as stack:
        try:
            stack.enter_context(ground.lender.lent(settings))
        except (OSError, LibvirtFailed) as why:
            raise NotPossible(str(why)) from why
        yield


def is_completed(state: State) -> bool:
    """Tell whether QEMU has written all of the stream."""
    return bool(state.get("status") == "completed")
