"""The files that a domain is started from besides its disks: looked at while it still runs.

A hypervisor opens them only when the domain that was there has been ended.
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
    """One of them: what it is to the domain, and where."""

    what: str
    path: Path


def require(domain: str, files: Iterable[StartFile], remedy: str = "") -> None:
    """Raise ``DomainRefused`` for the first that is not there, or does not answer.

    The hypervisor would wait for that one as long, when the domain is gone.
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
    """Whether it is sure that nothing is there; what cannot be looked at may still be opened."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no file can be called so
        return True
    except OSError:
        return False
    return False
