"""Capture the disks of a libvirt domain alone: one that is paused for it, or one that is off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snapvm.failures import WindowBroken
from snapvm.hypervisor.base import Freeze
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.libvirtlink import spoken
from snapvm.hypervisor.memoryless import Memoryless
from snapvm.model import Domain


class DisksOnlyCapture(Memoryless):
    """A capture without memory: the domain is only paused for its disks."""

    method = "none: disks only"

    def __init__(self, job: CaptureJob) -> None:
        self._job = job

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        """See ``Capture.window``."""
        with self._job.pause.ended_by_resume(leave_standing=leave_standing, freeze=freeze):
            self._job.pause.suspend()
            yield


class OffCapture(Memoryless):
    """A capture of a domain that is off: it must only not be started meanwhile."""

    method = "none: the domain was shut off"

    def __init__(self, domain: Domain, handle: Any) -> None:
        self._domain = domain
        self._handle = handle

    @contextmanager
    def window(
        self,
        *,
        leave_standing: bool = False,  # noqa: ARG002 - it is off
        freeze: Freeze | None = None,  # noqa: ARG002 - it is off
    ) -> Iterator[None]:
        """See ``Capture.window``."""
        yield
        with spoken():
            if self._handle.isActive():
                raise WindowBroken(domain=self._domain.name, what="somebody started it")
