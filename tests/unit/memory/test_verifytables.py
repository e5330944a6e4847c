"""How long the page tables of a large guest take to be checked."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from snapvm.memory import verifytables
from snapvm.memory.finding import Findings, Problem
from snapvm.memory.pageindex import PageIndex
from snapvm.memory.pagingmode import Words
from snapvm.memory.xenformat import PageType
from snapvm.memory.xenrecord import PageBatch

BLOCK = 4096
PER_BLOCK = 64
BLOCKS = 400
LEAVES = np.arange(BLOCKS * PER_BLOCK, dtype=np.uint64)


class Guest:
    """Few tables in each part of a large memory, as a kernel that has run for long has them."""

    def __init__(self) -> None:
        self.end_pfn = BLOCKS * BLOCK - 1
        self.index = PageIndex("img", self.end_pfn)
        self.l1 = LEAVES // PER_BLOCK * BLOCK + LEAVES % PER_BLOCK
        self.l2 = np.arange(len(LEAVES) // 512, dtype=np.uint64) + np.uint64(PER_BLOCK)
        for pfns, type_ in ((self.l1, PageType.L1TAB), (self.l2, PageType.L2TAB_PINNED)):
            self.index.add(
                PageBatch(
                    offset_bytes=0,
                    pfns=pfns,
                    types=np.full(len(pfns), type_, np.uint8),
                    data_offset_bytes=4096,
                    data=None,
                )
            )

    def read_tables(self, pfns: Words) -> Words:
        """Let the tables above lead to those below, all but the last, which map nothing."""
        tables = np.zeros((len(pfns), 512), np.uint64)
        for row, pfn in enumerate(pfns.tolist()):
            if pfn in self.l2:
                first = (pfn - PER_BLOCK) * 512
                tables[row] = self.l1[first : first + 512] << np.uint64(12) | np.uint64(1)
        if self.l2[-1] in pfns:
            tables[np.flatnonzero(pfns == self.l2[-1]), 511] = 0
        return tables


def test_tables_all_over_memory_take_no_longer_each() -> None:
    """All that had been reached was sorted for each part: days for a guest of a TiB."""
    guest: Any = Guest()
    findings = Findings()
    begun = time.process_time()
    assert verifytables.check_tables(guest, {5}, findings) == len(guest.l1) + len(guest.l2)
    seconds = time.process_time() - begun
    assert dict(findings.counts) == {Problem.UNREACHED_TABLE: 1}
    assert [found.pfn for found in findings.kept] == [guest.l1[-1]]
    assert seconds < 4
