"""Work on one domain after the other: what fails with one keeps no other from its turn."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from snapvm.errors import Interrupted, SnapvmError

log = logging.getLogger(__name__)


@contextmanager
def noting(failures: list[SnapvmError]) -> Iterator[None]:
    """Put what fails in the block aside, so that the next one has its turn; not an interruption."""
    try:
        yield
    except Interrupted:
        raise
    except SnapvmError as error:
        failures.append(error)


def worst(failures: Sequence[SnapvmError]) -> SnapvmError:
    """Return the failure to end with, and log the others: exit statuses grow with what they ask."""
    ends = max(failures, key=lambda error: error.exit_status)
    log_all(error for error in failures if error is not ends)
    return ends


def log_all(failures: Iterable[SnapvmError]) -> None:
    """Tell of failures that something else stands above."""
    for error in failures:
        log.warning("%s", f"{error}; {error.hint()}" if error.hint() else error)
