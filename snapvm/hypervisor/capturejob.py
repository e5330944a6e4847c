"""What every way to capture a libvirt domain works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapvm.clock import WindowClock
from snapvm.errors import CaptureFailed, WindowBroken
from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import spoken
from snapvm.hypervisor.pause import WatchedPause
from snapvm.model import Domain, MemoryRecord, Progress

IMAGE_FILE = "memory.save"
IMAGE_FORMAT = "libvirt-save"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureJob:
    """One capture: the domain, libvirt's handle of it, its pause, and where files go."""

    domain: Domain
    handle: Any
    pause: WatchedPause
    folder: Path
    run_dir: Path
    """Where locks are."""
    clock: WindowClock
    progress: Progress
    limit_seconds: float
    """Give up when writing memory takes longer."""

    @property
    def image(self) -> Path:
        """Where the memory image goes."""
        return self.folder / IMAGE_FILE

    def record(self, size_bytes: int) -> MemoryRecord:
        """Return what is to be recorded of the image."""
        return MemoryRecord(file=IMAGE_FILE, format=IMAGE_FORMAT, size_bytes=size_bytes)

    def failed(self, why: str) -> CaptureFailed:
        """Word a failure."""
        return CaptureFailed(domain=self.domain.name, why=why)

    def check_drives(self) -> None:
        """Raise ``WindowBroken`` when the drives are not those that were planned for."""
        with spoken():
            now = self.handle.XMLDesc(0)
        if domainxml.drives_of(now) != domainxml.drives_of(self.domain.definition):
            raise WindowBroken(domain=self.domain.name, what="its drives were changed")
