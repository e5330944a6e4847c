"""Trying again: the only importer of tenacity, one policy for each kind of passing trouble.

Only work that has no effects, or may safely be done twice, is ever repeated.
"""

from __future__ import annotations

import errno
import logging
import math
import signal
from collections.abc import Callable
from typing import TypeVar

import tenacity

from snapvm.attention import StuckPaused
from snapvm.errors import Locked
from snapvm.failures import CommandFailed, HypervisorFailed
from snapvm.refusals import BadImage, VolumeRefused

log = logging.getLogger(__name__)
T = TypeVar("T")

_CRASHED = (-signal.SIGSEGV, 128 + signal.SIGSEGV)
"""lvm reports were seen to segfault and to work at once afterwards (Launchpad 1901783).  The second
is how a shell tells of it."""

_UNREADABLE = 0
"""Only a command whose report is not what it should be fails with this (``reading.parse``)."""

_REPORTS = 3
_SOON_SECONDS = 10.0
_RESTART_SECONDS = 30.0
"""How long a libvirtd that is restarted may need until it knows its domains again."""
_RESUMES = 3
_LOOKS = 8
_BOOT_SECONDS = 30.0
"""How long the kernel of a guest may need until it has set its tables up."""


class NotYet(Exception):
    """What is waited for has not come; the text says what there is instead."""


def report(ask: Callable[[], T]) -> T:
    """Run a read-only query, up to three times when lvm crashed or printed what is no report."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_has_no_report),
        stop=tenacity.stop_after_attempt(_REPORTS),
        wait=tenacity.wait_fixed(0.2),
        reraise=True,
    )(ask)


def _has_no_report(error: BaseException) -> bool:
    return isinstance(error, CommandFailed) and error.status in (*_CRASHED, _UNREADABLE)


def _tell_of_resuming(state: tenacity.RetryCallState) -> None:
    failure = None if state.outcome is None else state.outcome.exception()
    log.warning("resuming failed, trying again: %s", failure)


def resume(attempt: Callable[[], T]) -> T:
    """Try to make a domain run again, for half a minute: to give up leaves it paused.

    A libvirtd that works on a domain for somebody else says no only after half a minute, so it is
    asked three times at least.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StuckPaused),
        stop=tenacity.stop_all(
            tenacity.stop_after_delay(_RESTART_SECONDS), tenacity.stop_after_attempt(_RESUMES)
        ),
        wait=tenacity.wait_exponential(multiplier=0.02, max=1),
        before_sleep=_tell_of_resuming,
        reraise=True,
    )(attempt)


def agent(attempt: Callable[[], T], *, limit_seconds: float) -> T:
    """Ask a guest's agent: it may be busy, or about to be heard again after a restore."""
    return _until_it_answers(attempt, limit_seconds)


def libvirtd(attempt: Callable[[], T]) -> T:
    """Connect to a libvirtd that is being restarted; for half a minute."""
    return _until_it_answers(attempt, _RESTART_SECONDS)


def _until_it_answers(attempt: Callable[[], T], limit_seconds: float) -> T:
    return _within(limit_seconds, attempt, _is(HypervisorFailed), pause_seconds=0.2)


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


def booting(look: Callable[[], T]) -> T:
    """Look at what the kernel of a guest sets up early, in one that may just have been started."""
    return _within(_BOOT_SECONDS, look, _is(BadImage))


def named(look: Callable[[], T], limit_seconds: float = math.inf) -> T:
    """Look at what a name of a device leads to, which udev is about to make or to move.

    It is looked at for ten seconds, or for ``limit_seconds`` when that is less.  A domain may stand
    still meanwhile, so it is looked at often.  Raises the last ``NotYet``.
    """
    limit_seconds = min(limit_seconds, _SOON_SECONDS)
    return _within(limit_seconds, look, _is(NotYet), pause_seconds=0.02)


def device(attempt: Callable[[], T]) -> T:
    """Open a device that its last user may be about to leave, or udev about to name.

    It is tried for ten seconds: a snapshot is attached without waiting for udev.
    """
    return _within(_SOON_SECONDS, attempt, _is_busy_or_nameless)


def unused(attempt: Callable[[], T]) -> T:
    """Ask for a volume that its last user may be about to leave; for ten seconds."""
    return _within(_SOON_SECONDS, attempt, _is(VolumeRefused))


def _is_busy_or_nameless(error: BaseException) -> bool:
    passing = (errno.EBUSY, errno.ENOENT, errno.ENXIO)
    return isinstance(error, OSError) and error.errno in passing


def lock(attempt: Callable[[], T], *, limit_seconds: float) -> T:
    """Try to get a lock until its holder is gone or the time is over."""
    return _within(limit_seconds, attempt, _is(Locked))


def _is(kind: type[Exception]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kind)


def _within(
    limit_seconds: float,
    attempt: Callable[[], T],
    is_passing: Callable[[BaseException], bool],
    *,
    pause_seconds: float = 0.1,
) -> T:
    """Try until it goes well or fails for another reason, or the time is over."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        stop=tenacity.stop_after_delay(limit_seconds),
        wait=tenacity.wait_fixed(pause_seconds),
        reraise=True,
    )(attempt)
