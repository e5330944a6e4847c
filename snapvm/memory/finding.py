"""The findings of a deep check of a memory image: what can be wrong, and how serious it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np

from snapvm.memory.pagingmode import Marks, Words

KEPT_PER_PROBLEM: Final = 64
"""How many findings of each problem are kept; further ones are only counted."""


class Severity(Enum):
    """What a problem means for a restore."""

    LOST = "restores, but without memory the domain had"
    REFUSED = "does not restore"
    ODD = "unusual"


class Problem(Enum):
    """What can be wrong with an image that is well-formed."""

    TABLE_LOST = "an entry leads to a page table that is not in the image"
    PAGE_LOST = "an entry maps a page that is not in the image"
    OWNED_LOST = "the domain owns a page that is not in the image"
    BEYOND = "an entry refers to a frame beyond the last"
    WRONG_LEVEL = "an entry leads to a page that is not a table of the next level"
    LARGE_PAGE = "a large page, which no PV guest can have"
    XEN_SLOT = "an entry in Xen's part of a root table"
    WRITABLE_TABLE = "a page table is mapped writable"
    UNREACHED_TABLE = "a page table that is neither pinned nor reached"
    UNPINNED_ROOT = "a vCPU's root table is not pinned"
    P2M_FRAME = "a frame of the p2m is not an ordinary page of the image"
    P2M_SHARED = "two parts of the p2m are one frame that owns pages"
    VCPU = "the state of a vCPU cannot be restored"
    START_INFO = "start_info or a ring it names cannot be restored"
    RECORD = "a record that is needed is missing"
    CONFIG = "a restore cannot use the configuration"
    TRAILING = "bytes after the end of the image"
    UNCHECKED = "page tables of this kind are not checked"

    @property
    def severity(self) -> Severity:
        """What the problem means for a restore."""
        if self in _LOST:
            return Severity.LOST
        return Severity.ODD if self in _ODD else Severity.REFUSED


_LOST: Final = {Problem.TABLE_LOST, Problem.PAGE_LOST, Problem.OWNED_LOST}
_ODD: Final = {
    Problem.UNREACHED_TABLE,
    Problem.UNPINNED_ROOT,
    Problem.P2M_SHARED,
    Problem.CONFIG,
    Problem.TRAILING,
    Problem.UNCHECKED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, and where it is."""

    problem: Problem
    pfn: int | None = None
    """The page at fault: of a wrong entry its table, of a lost page the page itself."""
    index: int | None = None
    """The number of the entry in its table."""
    target_pfn: int | None = None
    """The page that the entry refers to."""
    offset_bytes: int | None = None
    """The position in the file, for a record or a page that is in the file."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a deep check."""

    findings: tuple[Finding, ...]
    """At most `KEPT_PER_PROBLEM` of each problem."""
    counts: Mapping[Problem, int]
    """How often each problem there is was found."""
    pages: int
    tables: int
    vcpus: int

    def has(self, severity: Severity) -> bool:
        """Whether anything of that severity was found."""
        return any(problem.severity is severity for problem in self.counts)

    @property
    def is_sound(self) -> bool:
        """Whether the image restores with all of its memory."""
        return not (self.has(Severity.LOST) or self.has(Severity.REFUSED))


@dataclass(slots=True)
class Findings:
    """Collects findings, in bounded memory."""

    kept: list[Finding] = field(default_factory=list)
    counts: dict[Problem, int] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it while there are few of its kind."""
        if self._count(finding.problem, 1):
            self.kept.append(finding)

    def add_pages(self, problem: Problem, pfns: Words, *, offset_bytes: int | None = None) -> None:
        """Count one finding for each page, and keep the first few."""
        for pfn in pfns[: self._count(problem, len(pfns))].tolist():
            self.kept.append(Finding(problem=problem, pfn=pfn, offset_bytes=offset_bytes))

    def add_entries(
        self,
        problem: Problem,
        wrong: Marks,
        table_pfns: Words,
        targets: Words,
    ) -> None:
        """Count the table entries that ``wrong`` marks, and keep the first few.

        ``wrong`` and ``targets`` have the shape (n, 512), for n tables.
        """
        places = np.flatnonzero(wrong)
        for place in places[: self._count(problem, len(places))].tolist():
            row, index = divmod(place, wrong.shape[1])
            self.kept.append(
                Finding(
                    problem=problem,
                    pfn=int(table_pfns[row]),
                    index=index,
                    target_pfn=int(targets[row, index]),
                )
            )

    def _count(self, problem: Problem, times: int) -> int:
        """Count a problem so many times more; return how many of those findings are to be kept."""
        if not times:
            return 0
        before = self.counts.get(problem, 0)
        self.counts[problem] = before + times
        return min(times, max(0, KEPT_PER_PROBLEM - before))
