"""Tell whether the kernel merges a guest's memory with memory that is the same elsewhere (KSM).

What is merged gets a new entry in the page table, without the write protection of userfaultfd
(Linux, mm/ksm.c, replace_page).  When the guest then writes there nobody is told of it.
"""

from __future__ import annotations

from pathlib import Path

from snapvm.hypervisor import domainxml

RUN = Path("/sys/kernel/mm/ksm/run")
_MERGES = "1"
"""What is in it while the kernel merges (Linux, Documentation/admin-guide/mm/ksm.rst)."""


def are_merged(definition: str) -> bool:
    """Tell whether any of a live domain's memory may be merged now."""
    if domainxml.parse(definition).find("./memoryBacking/nosharepages") is not None:
        return False
    try:
        return RUN.read_text().strip() == _MERGES
    except OSError:  # a kernel without it
        return False
