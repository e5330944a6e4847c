"""The values with which every way to capture a libvirt domain works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed, ImageNotWritten
from snapvm.hypervisor.pause import WatchedPause
from snapvm.hypervisor.qemusettings import Lender
from snapvm.imageformats import LIBVIRT_FILE, LIBVIRT_SAVE
from snapvm.model import Domain, MemoryRecord, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What is needed to find out whether a domain can be captured in some way."""

    domain: Domain
    handle: Any
    lender: Lender
    run_dir: Path
    """The folder of locks."""
    domain_ends: bool = False
    """Whether the domain is stopped after its capture."""
    is_compressed: bool = False
    """Whether the image is to be compressed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureJob(Ground):
    """One capture: the domain, its pause, its files and its limits."""

    pause: WatchedPause
    folder: Path
    clock: WindowClock
    progress: Progress
    limit_seconds: float
    """Give up when writing memory takes longer."""
    window_limit_seconds: float
    """Give up, and let the guest run, when QEMU keeps it waiting longer in the pause."""
    precopy_limit_seconds: float
    """Pause the guest when its memory still changes after this time."""

    @property
    def image(self) -> Path:
        """Where the memory image goes."""
        return self.folder / LIBVIRT_FILE

    def record(self, size_bytes: int) -> MemoryRecord:
        """Return the record of the image."""
        return MemoryRecord(file=LIBVIRT_FILE, format=LIBVIRT_SAVE, size_bytes=size_bytes)

    def not_written(self, why: OSError) -> ImageNotWritten:
        """Return the failure for an error of the image's file system."""
        return ImageNotWritten.because(why, self.domain.name, self.folder)

    def failed(self, why: str) -> CaptureFailed:
        """Return the failure of this capture for a reason."""
        return CaptureFailed(domain=self.domain.name, why=why)
