"""All of memory is written while the guest stands still, or the guest runs again without it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.failures import CaptureFailed, ImageNotWritten
from snapvm.hypervisor import libvirtlink, migrationstream, qmp
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.drainpipe import Drainpipe
from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.libvirtstop import StopCapture
from snapvm.memory import libvirtimage
from tests.unit.hypervisor.eagerqemu import PAGES, EagerQemu
from tests.unit.hypervisor.fakedomain import PAUSED, RUNNING

LAST_PAGES = b"the last pages"


@dataclass
class StoppedQemu(EagerQemu):
    """A QEMU that writes the memory of a guest that stands still, and does not let it run then."""

    why_failed: str = ""
    is_endless: bool = False
    refusal: str = ""
    is_silent: bool = False
    """It does as it is told, and libvirt does not say so."""

    def qemuMonitorCommand(  # noqa: N802 - libvirt's own name
        self, handle: object, line: str, flags: int
    ) -> str:
        is_begun = json.loads(line)["execute"] == "migrate"
        if is_begun and self.refusal:
            return json.dumps({"error": {"desc": self.refusal}})
        answer = super().qemuMonitorCommand(handle, line, flags)
        if is_begun and self.is_silent:
            raise LibvirtFailed("client socket is closed", 38)
        return answer

    def look(self) -> dict[str, Any]:
        if self.status == "active" and not self.is_endless:
            os.write(self.pipe, LAST_PAGES)
            self.end("failed" if self.why_failed else "completed")
        why = {"error-desc": self.why_failed} if self.status == "failed" else {}
        return super().look() | why

    def resume(self) -> None:
        if self.status in ("setup", "active"):
            raise LibvirtFailed("Requested operation is not valid: migration in progress", 55)
        super().resume()

    def end(self, status: str) -> None:
        if self.status in ("setup", "active"):
            self.status = status
            os.close(self.pipe)


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> StoppedQemu:
    fake = StoppedQemu()
    monkeypatch.setattr(qmp, "libvirt_qemu", fake)
    monkeypatch.setattr(libvirtlink, "libvirt", SimpleNamespace(libvirtError=OSError))
    return fake


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Drainpipe._write

    def slowly(pipe: Drainpipe, chunk: bytes) -> None:
        time.sleep(0.2)
        write(pipe, chunk)

    monkeypatch.setattr(Drainpipe, "_write", slowly)


@contextmanager
def prepared(job: CaptureJob) -> Iterator[StopCapture]:
    with StopCapture.prepared(job, libvirtimage.Writer(), "") as capture:
        yield capture


@pytest.mark.usefixtures("slow_disk")
def test_all_of_memory_is_in_the_image_and_of_the_pause(job: CaptureJob, qemu: StoppedQemu) -> None:
    """When QEMU has written all of it some is on its way to the file yet."""
    with prepared(job) as capture:
        with capture.window():
            assert (qemu.state_now, qemu.status) == (PAUSED, "none")
            capture.arm()
            assert (qemu.state_now, qemu.status) == (PAUSED, "completed")
        assert qemu.state_now == RUNNING
        record = capture.drain()
    image = job.image.read_bytes()
    assert image.startswith(libvirtimage.MAGIC) and image.endswith(PAGES + LAST_PAGES)
    assert record.size_bytes == len(image)
    assert {part.name for part in job.clock.timing().parts} >= {"suspend", "memory"}


def test_one_that_is_not_to_run_again_stands_still(job: CaptureJob, qemu: StoppedQemu) -> None:
    with prepared(job) as capture:
        with capture.window(leave_standing=True):
            capture.arm()
        assert capture.drain().size_bytes and qemu.state_now == PAUSED


def test_what_is_given_up_while_it_is_written_lets_the_guest_run(
    job: CaptureJob, qemu: StoppedQemu
) -> None:
    """A snapshot of a disk failed.  QEMU resumes no guest before the end of such a stream."""
    qemu.is_large = True

    with pytest.raises(CaptureFailed, match="no longer wanted"), prepared(job) as capture:
        giving_up = threading.Timer(0.1, capture.give_up)
        with capture.window():
            giving_up.start()
            capture.arm()
    assert (qemu.state_now, qemu.status) == (RUNNING, "cancelled")


def test_memory_that_qemu_cannot_write_is_no_image_and_lets_the_guest_run(
    job: CaptureJob, qemu: StoppedQemu
) -> None:
    qemu.why_failed = "Unable to write to socket: Bad file"
    with (
        pytest.raises(CaptureFailed, match="Unable to write"),
        prepared(job) as capture,
        capture.window(),
    ):
        capture.arm()
    assert qemu.state_now == RUNNING
    assert job.image.read_bytes().startswith(libvirtimage.PARTIAL)


class FullDisk(libvirtimage.Writer):
    """Has room for the part before the stream."""

    def begin(self, path: Path, definition: str, cookie: str) -> int:
        os.close(super().begin(path, definition, cookie))
        return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.usefixtures("slow_disk")
@pytest.mark.parametrize("is_endless", [False, True])
def test_a_disk_that_is_full_is_said_and_lets_the_guest_run(
    job: CaptureJob, qemu: StoppedQemu, is_endless: bool
) -> None:
    """QEMU writes on into the pipe, whatever becomes of it."""
    qemu.is_endless = is_endless
    job = replace(job, limit_seconds=5)
    with (
        pytest.raises(ImageNotWritten, match="No space left"),
        StopCapture.prepared(job, FullDisk(), "") as capture,
    ):
        with capture.window():
            capture.arm()
        assert not is_endless, "the guest stood still for long"
        capture.drain()
    assert qemu.state_now == RUNNING
    assert job.image.read_bytes().startswith(libvirtimage.PARTIAL)


def test_somebody_elses_stream_is_not_ended_when_qemu_begins_no_other(
    job: CaptureJob, qemu: StoppedQemu
) -> None:
    """As a `virsh dump` that began in that moment."""
    qemu.refusal = "There's a migration process in progress"
    with (
        pytest.raises(CaptureFailed, match="migration process in progress"),
        prepared(job) as capture,
        capture.window(),
    ):
        capture.arm()
    assert qemu.state_now == RUNNING and "migrate_cancel" not in qemu.said


def test_a_stream_that_began_though_nobody_said_so_is_ended(
    job: CaptureJob, qemu: StoppedQemu
) -> None:
    """libvirtd was restarted when it had told QEMU."""
    qemu.is_large = qemu.is_silent = True
    with (
        pytest.raises(CaptureFailed, match="socket is closed"),
        prepared(job) as capture,
        capture.window(),
    ):
        capture.arm()
    assert (qemu.state_now, qemu.status) == (RUNNING, "cancelled")


def test_memory_that_takes_too_long_lets_the_guest_run(job: CaptureJob, qemu: StoppedQemu) -> None:
    qemu.is_large = True
    job = replace(job, limit_seconds=0.05)
    with (
        pytest.raises(CaptureFailed, match=r"longer than 0\.05 s \(capture_limit_seconds\)"),
        prepared(job) as capture,
        capture.window(),
    ):
        capture.arm()
    assert (qemu.state_now, qemu.status) == (RUNNING, "cancelled")


def test_a_stream_that_is_cancelled_is_waited_for() -> None:
    """QEMU lets its guest run, and takes another stream, only when this one has ended."""
    answers = ["cancelling", "cancelling", "cancelled"]

    class Monitor:
        def execute(self, command: str, _arguments: object = None) -> Any:
            return {"status": answers.pop(0)} if command == "query-migrate" else {}

    migrationstream.cancel(Monitor())
    assert not answers


def test_one_that_does_not_end_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrationstream, "CANCEL_LIMIT_SECONDS", 0.05)

    class Monitor:
        def execute(self, command: str, _arguments: object = None) -> Any:
            return {"status": "cancelling"} if command == "query-migrate" else {}

    begun = time.monotonic()
    migrationstream.cancel(Monitor())
    assert 0.05 <= time.monotonic() - begun < 5
