"""A command that goes on after a failure: what it notes of each, and which one it ends with.

Such are the commands that work on several domains or snapshots, or look for all that is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from snapvm.errors import Interrupted, SnapvmError

log = logging.getLogger(__name__)


def worst(failures: Sequence[SnapvmError]) -> SnapvmError:
    """Return the failure with the highest exit status, which asks for most, and log the others."""
    ends = max(failures, key=lambda error: error.exit_status)
    log_all(error for error in failures if error is not ends)
    return ends


@contextmanager
def noting(failures: list[SnapvmError]) -> Iterator[None]:
    """Put a failure of the block into a list and go on behind the block.

    An interruption is raised, and so is one that was put off until the work failed.
    """
    try:
        yield
    except Interrupted:
        raise
    except SnapvmError as failure:
        failures.append(failure)
        if failure.signal_put_off:
            raise Interrupted(signal=failure.signal_put_off) from failure


@contextmanager
def above_a_signal(failures: Sequence[SnapvmError]) -> Iterator[None]:
    """Raise an interruption of the block only where no noted failure has to be seen to."""
    try:
        yield
    except Interrupted:
        if not any(error.exit_status.leaves_work for error in failures):
            log_all(failures)
            raise


def log_all(failures: Iterable[SnapvmError]) -> None:
    """Log failures that are not what the command ends with."""
    for error in failures:
        log.warning("%s", f"{error}; {error.hint()}" if error.hint() else error)
