"""Capture a libvirt domain while it stands still: the longest pause, and the most reliable way.

QEMU migrates the suspended guest, and writes all of its memory in the pause.  This works wherever
``virsh save`` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from snapvm.hypervisor.base import Freeze, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtprecopy import UNLIMITED, is_completed, ready
from snapvm.hypervisor.migrationstream import MigrationStream
from snapvm.hypervisor.qemusettings import MigrationSettings
from snapvm.model import MemoryRecord

SETTINGS = MigrationSettings(capabilities=(), parameters={"max-bandwidth": UNLIMITED})


class StopCapture:
    """All of memory is written in the pause; see ``Capture``."""

    way = "stop: all memory written while the guest stands still"
    is_brief = False

    def __init__(self, job: CaptureJob, stream: MigrationStream, why: str) -> None:
        self._job = job
        self._stream = stream
        self._why = why

    @property
    def method(self) -> str:
        """See ``Capture.method``."""
        return self.way + self._stream.how + self._why

    @staticmethod
    @contextmanager
    def possible(ground: Ground) -> Iterator[None]:
        """Set QEMU up for the block; raise ``NotPossible``, and change nothing then."""
        with ready(ground, SETTINGS):
            yield

    @staticmethod
    @contextmanager
    def prepared(job: CaptureJob, image: ImageWriter, why: str) -> Iterator[StopCapture]:
        """Open the image and the pipe; leaving the block puts QEMU back as it was."""
        with ready(job, SETTINGS), MigrationStream.prepared(job, image) as stream:
            yield StopCapture(job, stream, why)

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        """See ``Capture.window``."""
        ending = self._job.pause.ended_by_resume(
            leave_standing=leave_standing, freeze=freeze, when_failed=self._stream.let_go
        )
        with ending:
            self._job.pause.suspend()
            yield

    def arm(self) -> None:
        """Let QEMU write all of memory, beside the LVM snapshots."""
        with self._job.clock.part("memory"):
            self._stream.begin()
            self._stream.wait_for(
                is_completed, limit_seconds=self._job.limit_seconds, tick=self._stream.tell
            )

    def give_up(self) -> None:
        """See ``Capture.give_up``."""
        self._stream.give_up()

    def drain(self) -> MemoryRecord:
        """See ``Capture.drain``: the stream has ended, the image is made whole."""
        return self._stream.finish()
