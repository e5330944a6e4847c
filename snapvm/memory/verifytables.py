"""Check the page tables and the p2m in an image of a 64-bit PV domain.

A restore checks tables only so far as Xen does when it pins them, and makes a zero page for each
page that an entry refers to and the image lacks (x86_pv_localise_page, xg_sr_restore_x86_pv.c).  So
2 MiB of mappings can be lost silently.  There are two ways to notice: the entries of the tables,
and the guest's own p2m, whose frames are ordinary pages of the image and still hold MFNs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.finding import Findings, Problem
from snapvm.memory.normalise import ROOT_LEVEL, XEN_SLOTS
from snapvm.memory.pagingmode import (
    FRAME_NUMBER_MASK,
    PTE_LARGE,
    PTE_PRESENT,
    PTE_WRITABLE,
    Marks,
    Words,
    frame_numbers,
)
from snapvm.memory.xenformat import (
    TYPE_HAS_DATA,
    TYPE_IS_PINNED,
    TYPE_IS_POPULATED,
    TYPE_LEVEL,
    PageType,
    PageTypes,
)
from snapvm.memory.xenframes import Survey

_TABLES_AT_ONCE: Final = 256
_P2M_FRAMES_AT_ONCE: Final = 256
_TABLE_TYPES: Final = {type_ for type_ in PageType if TYPE_LEVEL[type_]}


def check_tables(image: Survey, roots: set[int], findings: Findings) -> int:
    """Check every entry of every table; ``roots`` are the vCPUs' root tables.

    Returns the number of tables.
    """
    known = [root for root in roots if root <= image.end_pfn]
    image.index.mark(np.array(known, np.uint64))
    tables = 0
    for pfns in _tables(image):
        tables += len(pfns)
        levels = TYPE_LEVEL[image.index.types(pfns)]
        entries = image.read_tables(pfns)
        for level in range(1, ROOT_LEVEL + 1):
            rows = levels == level
            if rows.any():
                led_to = _check_level(image, level, pfns[rows], entries[rows], findings)
                image.index.mark(led_to)
    for pfns in _tables(image):
        types = image.index.types(pfns)
        unreached = ~TYPE_IS_PINNED[types] & ~image.index.marked(pfns)
        findings.add_pages(Problem.UNREACHED_TABLE, pfns[unreached])
    return tables


def check_p2m(image: Survey, findings: Findings) -> None:
    """Check that the image has the p2m's frames, and every page that the domain owns by its p2m."""
    if image.p2m is None:
        return
    frames = image.p2m.pfns
    bad = np.asarray(frames > np.uint64(image.end_pfn))
    usable = np.where(bad, np.uint64(0), frames)
    bad |= image.index.types(usable) != PageType.NOTAB
    findings.add_pages(Problem.P2M_FRAME, frames[bad], offset_bytes=image.p2m.offset_bytes)
    # In Linux all parts of the p2m without a page share one frame; each frame is read once.
    distinct, first, times = np.unique(usable[~bad], return_index=True, return_counts=True)
    places = np.flatnonzero(~bad)[first]
    for start in range(0, len(distinct), _P2M_FRAMES_AT_ONCE):
        part = slice(start, start + _P2M_FRAMES_AT_ONCE)
        owned = _owned(image.read_tables(distinct[part]))
        shared = distinct[part][owned.any(axis=1) & (times[part] > 1)]
        findings.add_pages(Problem.P2M_SHARED, shared)
        _check_owned(image, places[part], owned, findings)


def _tables(image: Survey) -> Iterator[Words]:
    """Yield the PFNs of all tables, in batches."""
    for pfns in image.index.of_types(_TABLE_TYPES):
        for start in range(0, len(pfns), _TABLES_AT_ONCE):
            yield pfns[start : start + _TABLES_AT_ONCE]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """The entries of n tables of one level: all arrays but the first have the shape (n, 512)."""

    level: int
    table_pfns: Words
    """The page of each table."""
    targets: Words
    """The page that each entry refers to."""
    usable: Marks
    """Which entries are present, and refer to a page that there may be."""
    writable: Marks
    """Which of those allow to write."""
    types: PageTypes
    """The type of each page that a usable entry refers to."""


def _check_level(
    image: Survey, level: int, pfns: Words, entries: Words, findings: Findings
) -> Words:
    """Check the tables of one level, shape (n, 512); return the tables to which they lead."""
    targets = frame_numbers(entries)
    usable = _check_form(image, level, pfns, entries, findings)
    types = np.full(entries.shape, PageType.NOTAB, np.uint8)
    types[usable] = image.index.types(targets[usable])
    checked = _Entries(
        level=level,
        table_pfns=pfns,
        targets=targets,
        usable=usable,
        writable=usable & (entries & np.uint64(PTE_WRITABLE) != 0),
        types=types,
    )
    if level > 1:
        return _check_descent(checked, findings)
    _check_mappings(checked, findings)
    return np.array([], np.uint64)


def _check_form(
    image: Survey, level: int, pfns: Words, entries: Words, findings: Findings
) -> Marks:
    """Report entries that no table of this level may have; mark the other present ones."""
    targets = frame_numbers(entries)
    present = np.asarray(entries & np.uint64(PTE_PRESENT) != 0)
    if level == ROOT_LEVEL:
        in_xen_slots = np.zeros_like(present)
        in_xen_slots[:, XEN_SLOTS] = entries[:, XEN_SLOTS] != 0
        findings.add_entries(Problem.XEN_SLOT, in_xen_slots, pfns, targets)
        present &= ~in_xen_slots
    if level > 1:
        large = present & (entries & np.uint64(PTE_LARGE) != 0)
        findings.add_entries(Problem.LARGE_PAGE, large, pfns, targets)
        present &= ~large
    beyond = present & (targets > np.uint64(image.end_pfn))
    findings.add_entries(Problem.BEYOND, beyond, pfns, targets)
    return present & ~beyond


def _check_mappings(entries: _Entries, findings: Findings) -> None:
    """Check the pages that L1 entries map."""
    lost = entries.usable & ~TYPE_IS_POPULATED[entries.types]
    findings.add_entries(Problem.PAGE_LOST, lost, entries.table_pfns, entries.targets)
    tables = entries.writable & (TYPE_LEVEL[entries.types] > 0)
    findings.add_entries(Problem.WRITABLE_TABLE, tables, entries.table_pfns, entries.targets)


def _check_descent(entries: _Entries, findings: Findings) -> Words:
    """Check the tables that entries above L1 lead to; return those that are what they should be."""
    lost = entries.usable & ~TYPE_HAS_DATA[entries.types]
    findings.add_entries(Problem.TABLE_LOST, lost, entries.table_pfns, entries.targets)
    below = TYPE_LEVEL[entries.types]
    # A table may map itself, or another table of its level, read-only (CONFIG_PV_LINEAR_PT).
    linear = (below == entries.level) & ~entries.writable
    wrong = entries.usable & ~lost & (below != entries.level - 1) & ~linear
    findings.add_entries(Problem.WRONG_LEVEL, wrong, entries.table_pfns, entries.targets)
    led_to: Words = entries.targets[entries.usable & ~lost & ~wrong]
    return led_to


def _owned(entries: Words) -> Marks:
    """Mark the p2m entries that are machine frames: without marks of Linux, not 0, not all ones."""
    return np.asarray((entries != 0) & (entries <= FRAME_NUMBER_MASK))


def _check_owned(
    image: Survey, places: npt.NDArray[np.intp], owned: Marks, findings: Findings
) -> None:
    """Check that the image has the pages of the ``owned`` entries, shape (n, 512).

    ``places`` says which frame of the p2m each of the n frames is.
    """
    rows, indexes = np.nonzero(owned)
    pfns = (places[rows] * owned.shape[1] + indexes).astype(np.uint64)
    pfns = pfns[pfns <= np.uint64(image.end_pfn)]  # the last frame is longer than the p2m
    lost = pfns[~TYPE_IS_POPULATED[image.index.types(pfns)]]
    findings.add_pages(Problem.OWNED_LOST, lost)
