"""Which failure a command ends with when it has failed for several domains."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from snapvm.errors import ExitStatus, Interrupted, SnapvmError

log = logging.getLogger(__name__)


def worst(failures: Sequence[SnapvmError]) -> SnapvmError:
    """Return the failure with the highest exit status, which asks for most, and log the others."""
    ends = max(failures, key=lambda error: error.exit_status)
    log_all(error for error in failures if error is not ends)
    return ends


@contextmanager
def above_a_signal(failures: Sequence[SnapvmError]) -> Iterator[None]:
    """Let an interruption of the block pass, unless failures noted by then are to be seen to."""
    try:
        yield
    except Interrupted:
        if all(error.exit_status <= ExitStatus.FAILED for error in failures):
            log_all(failures)
            raise


def log_all(failures: Iterable[SnapvmError]) -> None:
    """Log failures that are not what the command ends with."""
    for error in failures:
        log.warning("%s", f"{error}; {error.hint()}" if error.hint() else error)
