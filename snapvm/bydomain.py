"""Which failure a command ends with when it has failed for several domains."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from snapvm.errors import SnapvmError

log = logging.getLogger(__name__)


def worst(failures: Sequence[SnapvmError]) -> SnapvmError:
    """Return the failure with the highest exit status, which asks for most, and log the others."""
    ends = max(failures, key=lambda error: error.exit_status)
    log_all(error for error in failures if error is not ends)
    return ends


def log_all(failures: Iterable[SnapvmError]) -> None:
    """Log failures that are not what the command ends with."""
    for error in failures:
        log.warning("%s", f"{error}; {error.hint()}" if error.hint() else error)
