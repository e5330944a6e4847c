"""What every way to capture a libvirt domain works with."""

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
    """What it takes to find out whether a domain can be captured in some way."""

    domain: Domain
    handle: Any
    lender: Lender
    run_dir: Path
    """Where locks are."""
    domain_ends: bool = False
    """It is stopped when it is captured."""
    is_compressed: bool = False
    """Its image shall be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureJob(Ground):
    """One capture: the ground, the domain's pause, and where files go."""

    pause: WatchedPause
    folder: Path
    clock: WindowClock
    progress: Progress
    limit_seconds: float
    """Give up when writing memory takes longer."""
    window_limit_seconds: float
    """Let the guest run, and give up, when QEMU takes longer until it may."""
    precopy_limit_seconds: float
    """Stop the guest when writing memory beside it takes longer."""

    @property
    def image(self) -> Path:
        """Where the memory image goes."""
        return self.folder / LIBVIRT_FILE

    def record(self, size_bytes: int) -> MemoryRecord:
        """Return what is to be recorded of the image."""
        return MemoryRecord(file=LIBVIRT_FILE, format=LIBVIRT_SAVE, size_bytes=size_bytes)

    def not_written(self, why: OSError) -> ImageNotWritten:
        """Word a failure of the image's file system."""
        return ImageNotWritten.because(why, self.domain.name, self.folder)

    def failed(self, why: str) -> CaptureFailed:
        """Word a failure."""
        return CaptureFailed(domain=self.domain.name, why=why)
