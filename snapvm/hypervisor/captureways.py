"""Which way a libvirt domain's memory is captured: the shortest pause this host and domain can do.

The choice falls before the pause: each way tries what it needs, and changes nothing when that is
not to be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from snapvm.hypervisor.base import Capture, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.libvirtcapture import ExternalCapture
from snapvm.hypervisor.libvirtprecopy import PrecopyCapture
from snapvm.hypervisor.libvirtstop import StopCapture
from snapvm.hypervisor.migrationstream import NotPossible
from snapvm.model import CaptureMethod, Domain
from snapvm.refusals import DomainRefused


class PreparedCapture(Capture, Protocol):
    """A capture that has to be prepared first."""

    def prepared(self, image: ImageWriter) -> AbstractContextManager[None]:
        """Have all that it needs for the block; raise ``NotPossible`` and change nothing."""


class Way(Protocol):
    """A class of captures."""

    way: str

    def __call__(self, job: CaptureJob, why: str) -> PreparedCapture:
        """Return a capture that says ``why`` it is done so."""

    def possible(self, ground: Ground) -> AbstractContextManager[Any]:
        """Find out whether it could be; raise ``NotPossible`` and change nothing."""


WAYS: Mapping[CaptureMethod, Way] = {
    CaptureMethod.BACKGROUND: BackgroundCapture,
    CaptureMethod.PRECOPY: PrecopyCapture,
    CaptureMethod.LIBVIRT: ExternalCapture,
    CaptureMethod.STOP: StopCapture,
}
"""In the order in which they are tried: the shorter the pause the earlier."""


def choose(stack: ExitStack, job: CaptureJob, image: ImageWriter, wanted: CaptureMethod) -> Capture:
    """Return the first capture that is possible, prepared for as long as ``stack`` lasts.

    Raises ``DomainRefused`` when none is, or not the one that was asked for.
    """
    found: list[Capture] = []

    def enter(way: Way, why: str) -> None:
        capture = way(job, why)
        stack.enter_context(capture.prepared(image))
        found.append(capture)

    _first_possible(job.domain, wanted, enter)
    return found[0]


def foresee(ground: Ground, wanted: CaptureMethod) -> str:
    """Say which way it would be, and why; the domain runs on undisturbed.

    Raises ``DomainRefused`` as ``choose`` does.
    """
    found: list[str] = []

    def look(way: Way, why: str) -> None:
        with way.possible(ground):
            found.append(way.way + why)

    _first_possible(ground.domain, wanted, look)
    return found[0]


class _Attempt(Protocol):
    def __call__(self, way: Way, why: str) -> None:
        """Try a way; raise ``NotPossible``."""


def _first_possible(domain: Domain, wanted: CaptureMethod, attempt: _Attempt) -> None:
    is_free = wanted is CaptureMethod.AUTO
    reasons: list[str] = []
    for method in WAYS if is_free else (wanted,):
        why = "; ".join(reasons) if is_free else "as was asked for"
        try:
            attempt(WAYS[method], f" ({why})" if why else "")
        except NotPossible as why_not:
            reasons.append(f"{method} is not possible: {why_not}")
        else:
            return
    raise DomainRefused(
        domain=domain.name,
        why="; ".join(reasons),
        remedy="shut it off, or take its disks alone: --disk-only"
        if is_free
        else "let snapvm choose: leave --capture out",
    )
