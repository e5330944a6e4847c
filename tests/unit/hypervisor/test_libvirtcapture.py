"""When the writing of an image by libvirt itself is given up: it grows as long as a guest likes."""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ET
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, ImageNotWritten
from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.base import Freeze
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.libvirtcapture import ExternalCapture, snapshot_xml
from snapvm.model import Silent
from tests.unit.hypervisor.fakedomain import DOMAIN
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, libvirtError

MEMORY = DOMAIN.memory_bytes


class Writer:
    """A libvirt that writes memory, again and again, until it is told to end."""

    def __init__(self) -> None:
        self.is_aborted = threading.Event()

    def snapshotCreateXML(self, _xml: str, _flags: int) -> None:  # noqa: N802 - libvirt's name
        if not self.is_aborted.wait(5):
            raise AssertionError("nobody gives it up")
        raise libvirtError("it was aborted", 1)

    def jobStats(self) -> dict[str, int]:  # noqa: N802 - libvirt's name
        return {}

    def abortJob(self) -> None:  # noqa: N802 - libvirt's name
        self.is_aborted.set()


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What there is left in the file system."""
    left = [1 << 40]
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    monkeypatch.setattr(libvirtlink, "TICK_SECONDS", 0.01)
    monkeypatch.setattr("snapvm.imageroom.free_bytes", lambda _folder: left[0])
    return left


def job_in(folder: Path, writer: Writer, limit_seconds: float = 3600) -> CaptureJob:
    pause: Any = SimpleNamespace(
        ended_by_resume=lambda **_: nullcontext(),
        owners_kept=nullcontext,
        refuse_owners=lambda: None,
        stopped_at=lambda: None,
    )
    nothing: Any = None
    handle: Any = writer
    return CaptureJob(
        domain=DOMAIN,
        handle=handle,
        lender=nothing,
        run_dir=folder,
        pause=pause,
        folder=folder,
        clock=WindowClock(),
        progress=Silent(),
        limit_seconds=limit_seconds,
        window_limit_seconds=30,
        precopy_limit_seconds=60,
    )


def capture(
    folder: Path, writer: Writer, limit_seconds: float = 3600, freeze: Freeze | None = None
) -> None:
    job = job_in(folder, writer, limit_seconds)
    with ExternalCapture(job, "").window(freeze=freeze):
        pytest.fail("there is no window")


def test_an_image_that_cannot_be_looked_at_is_no_bug(tmp_path: Path) -> None:
    """Its file system has failed since libvirt has closed it: the snapshot is not made."""
    with pytest.raises(ImageNotWritten, match="No such file"):
        ExternalCapture(job_in(tmp_path, Writer()), "").drain()


def test_it_does_not_fill_the_file_system(tmp_path: Path, free: list[int]) -> None:
    """A busy guest had it filled within the hour that a capture may take."""
    free[0] = 20 << 20
    writer = Writer()
    with pytest.raises(CaptureFailed, match=r"faster than .* given up with 20 MiB left"):
        capture(tmp_path, writer)
    assert writer.is_aborted.is_set()


@pytest.mark.usefixtures("free")
def test_it_is_not_written_over_and_over(tmp_path: Path) -> None:
    with open(tmp_path / "memory.save", "wb") as file:
        file.truncate(11 * MEMORY)
    writer = Writer()
    with pytest.raises(CaptureFailed, match="given up when it had been written 11 times"):
        capture(tmp_path, writer)
    assert writer.is_aborted.is_set()


@pytest.mark.usefixtures("free")
def test_it_does_not_take_longer_than_it_may(tmp_path: Path) -> None:
    with pytest.raises(CaptureFailed, match=r"given up after 0\.05 s"):
        capture(tmp_path, Writer(), limit_seconds=0.05)


@pytest.mark.usefixtures("free")
def test_that_a_guest_is_frozen_for_all_of_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its programs hung for minutes, which nobody had chosen: other ways were not possible."""
    with pytest.raises(CaptureFailed):
        capture(tmp_path, Writer(), limit_seconds=0.05, freeze=lambda: None)
    assert "cannot write while its memory is written" in caplog.text


def test_every_drive_is_named_to_libvirt_and_none_is_its_to_capture() -> None:
    """A folder of the administrator's may have any name."""
    drives = (
        "<disk type='block' device='disk'><source dev='/dev/vg/a'/><target dev='vda'/></disk>"
        "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>"
    )
    image = Path('/srv/a & "b" <c>/memory.save')
    root = ET.fromstring(snapshot_xml(f"<domain><devices>{drives}</devices></domain>", image))
    memory = root.find("memory")
    assert memory is not None
    assert memory.attrib == {"snapshot": "external", "file": str(image)}
    disks = {disk.get("name"): disk.get("snapshot") for disk in root.iterfind("./disks/disk")}
    assert disks == {"vda": "manual", "sda": "no"}
