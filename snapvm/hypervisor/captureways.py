"""Choose the way to capture a libvirt domain's memory: the one with the shortest possible pause.

The choice is made before the pause: each way tries what it needs, and changes nothing when this
host or domain does not have that.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, TypeVar

from snapvm.capturewords import IS_NOT_POSSIBLE
from snapvm.hypervisor.base import Capture, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.libvirtcapture import ExternalCapture
from snapvm.hypervisor.libvirtprecopy import PrecopyCapture
from snapvm.hypervisor.libvirtstop import StopCapture
from snapvm.hypervisor.migrationstream import NotPossible
from snapvm.model import CaptureMethod, Domain, DomainState
from snapvm.refusals import DomainRefused

T = TypeVar("T")


class Way(Protocol):
    """A way to capture: a class of captures."""

    way: str

    def possible(self, ground: Ground) -> AbstractContextManager[Any]:
        """Find out whether this way is possible; raise ``NotPossible`` and change nothing."""

    def prepared(
        self, job: CaptureJob, image: ImageWriter, why: str
    ) -> AbstractContextManager[Capture]:
        """Make all ready that a capture needs, for the block; raise as ``possible`` does.

        ``why`` is the reason for this way, for the record.
        """


WAYS: Mapping[CaptureMethod, Way] = {
    CaptureMethod.BACKGROUND: BackgroundCapture,
    CaptureMethod.PRECOPY: PrecopyCapture,
    CaptureMethod.LIBVIRT: ExternalCapture,
    CaptureMethod.STOP: StopCapture,
}
"""The ways in the order in which they are tried, the shortest pause first."""


def choose(stack: ExitStack, job: CaptureJob, image: ImageWriter, wanted: CaptureMethod) -> Capture:
    """Return the first possible capture, prepared for as long as ``stack`` lasts.

    Raises ``DomainRefused`` when none is possible, or not the one that was asked for.
    """

    def prepare(way: Way, why: str) -> Capture:
        return stack.enter_context(way.prepared(job, image, why))

    return _first_possible(job, wanted, prepare)


def foresee(ground: Ground, wanted: CaptureMethod) -> str:
    """Return which way would be chosen, and why; the domain is not disturbed.

    Raises ``DomainRefused`` as ``choose`` does.
    """

    def look(way: Way, why: str) -> str:
        with way.possible(ground):
            return way.way + why

    return _first_possible(ground, wanted, look)


def _first_possible(ground: Ground, wanted: CaptureMethod, attempt: Callable[[Way, str], T]) -> T:
    """Return what the first attempt returns that does not raise ``NotPossible``."""
    is_free = wanted is CaptureMethod.AUTO
    stays_paused = ground.domain.state is DomainState.PAUSED and not ground.domain_ends
    ways = tuple(WAYS) if is_free else (wanted,)
    left_out = [way for way in ways if stays_paused and way is not CaptureMethod.BACKGROUND]
    reasons: list[str] = []
    for method in (way for way in ways if way not in left_out):
        why = "; ".join(reasons) if is_free else "as was asked for"
        try:
            return attempt(WAYS[method], f" ({why})" if why else "")
        except NotPossible as why_not:
            reasons.append(f"{method} {IS_NOT_POSSIBLE}: {why_not}")
    if left_out:
        reasons.append(_why_not_paused(left_out))
    remedy = _remedy(ground.domain, is_free=is_free, stays_paused=stays_paused)
    if ground.is_compressed and CaptureMethod.LIBVIRT in ways and not stays_paused:
        remedy = f"leave --compress out, and `compress` in the settings; or {remedy}"
    raise DomainRefused(domain=ground.domain.name, why="; ".join(reasons), remedy=remedy)


def _why_not_paused(ways: Sequence[CaptureMethod]) -> str:
    """Say why these ways cannot capture a domain that stays paused.

    They leave QEMU in the state ``postmigrate``, which only running ends.  Until then not even
    libvirt could save the domain, as it does when the host is shut down.
    """
    *others, last = ways
    named = f"{', '.join(others)} or {last}" if others else last
    return f"it is paused, and after {named} QEMU would not save it again before it has run"


def _remedy(domain: Domain, *, is_free: bool, stays_paused: bool) -> str:
    running = f"let it run first (virsh resume {shlex.quote(domain.name)})"
    if is_free:
        first = running if stays_paused else "shut it off"
        return f"{first}, or take its disks alone: --disk-only"
    choosing = "let snapvm choose: leave --capture out, and `capture` in the settings"
    return f"{running}, or {choosing}" if stays_paused else choosing
