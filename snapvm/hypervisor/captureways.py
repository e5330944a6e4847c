"""Which way a libvirt domain's memory is captured: the shortest pause this host and domain can do.

The choice falls before the pause: each way tries what it needs, and changes nothing when that is
not to be had.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from snapvm.hypervisor.base import Capture, ImageWriter
from snapvm.hypervisor.capturejob import CaptureJob, Ground
from snapvm.hypervisor.libvirtbackground import BackgroundCapture
from snapvm.hypervisor.libvirtcapture import ExternalCapture
from snapvm.hypervisor.libvirtprecopy import PrecopyCapture
from snapvm.hypervisor.libvirtstop import StopCapture
from snapvm.hypervisor.migrationstream import NotPossible
from snapvm.model import CaptureMethod, Domain, DomainState
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

    _first_possible(job, wanted, enter)
    return found[0]


def foresee(ground: Ground, wanted: CaptureMethod) -> str:
    """Say which way it would be, and why; the domain runs on undisturbed.

    Raises ``DomainRefused`` as ``choose`` does.
    """
    found: list[str] = []

    def look(way: Way, why: str) -> None:
        with way.possible(ground):
            found.append(way.way + why)

    _first_possible(ground, wanted, look)
    return found[0]


class _Attempt(Protocol):
    def __call__(self, way: Way, why: str) -> None:
        """Try a way; raise ``NotPossible``."""


def _first_possible(ground: Ground, wanted: CaptureMethod, attempt: _Attempt) -> None:
    is_free = wanted is CaptureMethod.AUTO
    stays_paused = ground.domain.state is DomainState.PAUSED and not ground.domain_ends
    ways = tuple(WAYS) if is_free else (wanted,)
    left_out = [way for way in ways if stays_paused and way is not CaptureMethod.BACKGROUND]
    reasons: list[str] = []
    for method in (way for way in ways if way not in left_out):
        why = "; ".join(reasons) if is_free else "as was asked for"
        try:
            attempt(WAYS[method], f" ({why})" if why else "")
        except NotPossible as why_not:
            reasons.append(f"{method} is not possible: {why_not}")
        else:
            return
    if left_out:
        reasons.append(_not_of_a_paused_one(left_out))
    remedy = _remedy(ground.domain, is_free=is_free, stays_paused=stays_paused)
    if ground.is_compressed and CaptureMethod.LIBVIRT in ways and not stays_paused:
        remedy = f"leave --compress out, and `compress` in the settings; or {remedy}"
    raise DomainRefused(domain=ground.domain.name, why="; ".join(reasons), remedy=remedy)


def _not_of_a_paused_one(ways: Sequence[CaptureMethod]) -> str:
    """Say why: they leave QEMU as after a migration (``postmigrate``), and only running ends that.

    Then not even libvirt could save it, as it does when the host is shut down.
    """
    *others, last = ways
    named = f"{', '.join(others)} or {last}" if others else last
    return f"it is paused, and after {named} QEMU would not save it again before it has run"


def _remedy(domain: Domain, *, is_free: bool, stays_paused: bool) -> str:
    running = f"let it run first (virsh resume {shlex.quote(domain.name)})"
    if is_free:
        first = running if stays_paused else "shut it off"
        return f"{first}, or take its disks alone: --disk-only"
    choosing = "let snapvm choose: leave --capture out"
    return f"{running}, or {choosing}" if stays_paused else choosing
