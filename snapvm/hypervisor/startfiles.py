"""Check that the files exist which a domain needs to start besides its disks.

A hypervisor would open them only after the running domain has been ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snapvm.hypervisor import answers
from snapvm.refusals import DomainRefused

NO_ANSWER = (
    "see what keeps it: a server that is down (`findmnt -T` names it), a path that has failed"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFile:
    """A file that is needed for a start: what it is to the domain, and its path."""

    what: str
    path: Path


def require(domain: str, files: Iterable[StartFile], remedy: str = "") -> None:
    """Raise ``DomainRefused`` for the first file that is missing, or does not answer.

    For a file that does not answer the hypervisor would wait, with the domain already ended.
    """
    others = f", or {remedy}" if remedy else ""
    wanted = tuple(files)
    is_missing = answers.asked(_is_missing, (file.path for file in wanted))
    for file in wanted:
        if file.path not in is_missing:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: its {file.what} does not answer ({file.path})",
                remedy=f"{NO_ANSWER}{others}",
            )
        if is_missing[file.path]:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: its {file.what} is not there ({file.path})",
                remedy=f"put it back{others}",
            )


def _is_missing(path: Path) -> bool:
    """Tell whether a file is surely missing; one that cannot be examined may still be opened."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: an impossible name
        return True
    except OSError:
        return False
    return False
