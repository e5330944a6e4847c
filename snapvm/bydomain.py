"""Several domains each had their turn, and some failed: which failure the command ends with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from snapvm.errors import ExitStatus, Interrupted, SnapvmError

log = logging.getLogger(__name__)


def worst(failures: Sequence[SnapvmError]) -> SnapvmError:
    """Return the failure to end with, and log the others; the highest exit status asks for most."""
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
    """Tell of failures that something else stands above."""
    for error in failures:
        log.warning("%s", f"{error}; {error.hint()}" if error.hint() else error)
