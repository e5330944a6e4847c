"""Trying again: the only importer of tenacity, one policy for each kind of passing trouble.

Only work without effects, or work that may safely be done twice, is ever repeated.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable
from typing import TypeVar

import tenacity

from snapvm.attention import StuckPaused
from snapvm.errors import Locked
from snapvm.failures import CommandFailed, HypervisorFailed
from snapvm.refusals import BadImage, VolumeRefused

log = logging.getLogger(__name__)
T = TypeVar("T")

_LVM_CRASHED = 139
"""lvm reports were seen to segfault and to work at once afterwards (Launchpad 1901783)."""

_UNREADABLE = 0
"""No command fails with it but one whose report is not what it should be (``reading.parse``)."""

_SOON_SECONDS = 10.0
_LOOKS = 8


class NotYet(Exception):
    """What is waited for has not come; the text says what there is instead."""


def _is_passing(error: BaseException) -> bool:
    passing = (_LVM_CRASHED, -11, _UNREADABLE)
    return isinstance(error, CommandFailed) and error.status in passing


def report(ask: Callable[[], T]) -> T:
    """Run a read-only query, up to three times when lvm crashed or printed what is no report."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_passing),
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_fixed(0.2),
        reraise=True,
    )(ask)


def _tell_of_resuming(state: tenacity.RetryCallState) -> None:
    failure = None if state.outcome is None else state.outcome.exception()
    log.warning("resuming failed, trying again: %s", failure)


def resume(attempt: Callable[[], T]) -> T:
    """Try to make a domain run again, for half a minute: giving up leaves it paused.

    A libvirtd that is restarted needs seconds before it knows its domains again.  One that works
    on a domain says no only after half a minute, and is asked three times at least.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StuckPaused),
        stop=tenacity.stop_all(tenacity.stop_after_delay(30), tenacity.stop_after_attempt(3)),
        wait=tenacity.wait_exponential(multiplier=0.02, max=1),
        before_sleep=_tell_of_resuming,
        reraise=True,
    )(attempt)


def agent(attempt: Callable[[], T], *, limit_seconds: float) -> T:
    """Ask a guest's agent: it may be busy, or about to be heard again after a restore."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(HypervisorFailed),
        stop=tenacity.stop_after_delay(limit_seconds),
        wait=tenacity.wait_fixed(0.2),
        reraise=True,
    )(attempt)


def libvirtd(attempt: Callable[[], T]) -> T:
    """Connect to a libvirtd that is being restarted; for half a minute."""
    return agent(attempt, limit_seconds=30)


def moving(look: Callable[[], T]) -> T:
    """Look at the tables of a guest that runs, and may be in the midst of changing them.

    It needs microseconds for that, but may be taken off its processor in between.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(BadImage),
        stop=tenacity.stop_after_attempt(_LOOKS),
        wait=tenacity.wait_exponential(multiplier=0.01, max=0.2),
        reraise=True,
    )(look)


def named(look: Callable[[], T], limit_seconds: float = math.inf) -> T:
    """Look at what a name of a device leads to, which udev is about to make or to move.

    For as long as ``device`` does, or for ``limit_seconds`` when that is less; raises the last
    ``NotYet``.
    """
    return _soon(look, lambda error: isinstance(error, NotYet), limit_seconds)


def device(attempt: Callable[[], T]) -> T:
    """Open a device that its last user may be about to leave, or udev about to name.

    Ten seconds at the most; a snapshot is attached without waiting for udev.
    """
    return _soon(attempt, _is_coming)


def unused(attempt: Callable[[], T]) -> T:
    """Ask for a volume that its last user may be about to leave; for as long as ``device`` does."""
    return _soon(attempt, lambda error: isinstance(error, VolumeRefused))


def _soon(
    attempt: Callable[[], T],
    is_coming: Callable[[BaseException], bool],
    limit_seconds: float = math.inf,
) -> T:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_coming),
        stop=tenacity.stop_after_delay(min(limit_seconds, _SOON_SECONDS)),
        wait=tenacity.wait_fixed(0.1),
        reraise=True,
    )(attempt)


def _is_coming(error: BaseException) -> bool:
    coming = (errno.EBUSY, errno.ENOENT, errno.ENXIO)
    return isinstance(error, OSError) and error.errno in coming


def lock(attempt: Callable[[], T], *, limit_seconds: float) -> T:
    """Try to get a lock until its holder is gone or the time is over."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Locked),
        stop=tenacity.stop_after_delay(limit_seconds),
        wait=tenacity.wait_fixed(0.1),
        reraise=True,
    )(attempt)
