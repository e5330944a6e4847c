"""Find the size of a domain's huge pages, and check that this host has enough of them.

QEMU protects and copies a huge page as a whole, and it ends when there are too few for its start.
"""

from __future__ import annotations

import re
from pathlib import Path

from snapvm.hypervisor import domainxml
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

MEMINFO = Path("/proc/meminfo")
POOLS = Path("/sys/kernel/mm/hugepages")
"""A folder for each size (Linux, admin-guide/mm/hugetlbpage)."""
_PAGE_SIZES = ("./memoryBacking/hugepages/page", "size"), ("./devices/memory/source/pagesize", "")
"""Where libvirt's XML has page sizes in KiB: in an attribute, or as text (docs/formatdomain)."""


def largest_kib(definition: str) -> int:
    """Return the size of a live domain's largest huge pages in KiB; 0 without any."""
    root = domainxml.parse(definition)
    sizes = [
        element.get(attribute, "") if attribute else (element.text or "")
        for path, attribute in _PAGE_SIZES
        for element in root.iterfind(path)
    ]
    hugepages = root.find("./memoryBacking/hugepages")
    if hugepages is not None and hugepages.find("page") is None:
        sizes.append(str(_default_kib()))
    return max((int(size) for size in sizes if re.fullmatch("[0-9]{1,18}", size)), default=0)


def _default_kib() -> int:
    """Return the size of the host's default huge pages (proc(5), Hugepagesize); 0 if unknown."""
    try:
        found = re.search(r"^Hugepagesize:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def require_room(domain: Domain, definition: str) -> None:
    """Raise ``DomainRefused`` when too few would be free for a start, once the domain has ended.

    Does nothing when only a part of its memory is in huge pages, or the kernel does not say.
    """
    page_kib, needed_kib = largest_kib(definition), _wholly_kib(definition)
    pool = POOLS / f"hugepages-{page_kib}kB"
    if not needed_kib or not pool.is_dir():
        return
    free_kib = _free_pages(pool) * page_kib
    is_off = domain.state is DomainState.SHUTOFF
    if not is_off and largest_kib(domain.definition) == page_kib:
        free_kib += _wholly_kib(domain.definition)
    if free_kib < needed_kib:
        more = -(-(needed_kib - free_kib) // page_kib)
        raise DomainRefused(
            domain=domain.name,
            why=f"it would not start: its memory is {needed_kib >> 10} MiB in huge pages of "
            f"{page_kib} KiB, but only {free_kib >> 10} MiB of them would be free",
            remedy=f"provide {more} more of them ({pool}/nr_hugepages), or end another domain",
        )


def _wholly_kib(definition: str) -> int:
    """Return how much of a memory is needed that is wholly in huge pages of one size; else 0."""
    if not definition:
        return 0
    root = domainxml.parse(definition)
    pages = root.findall("./memoryBacking/hugepages/page")
    is_whole = len(pages) < 2 and not any(page.get("nodeset") for page in pages)
    if root.find("./memoryBacking/hugepages") is None or not is_whole:
        return 0
    text = root.findtext("memory", "").strip()  # in libvirt's XML it is always in KiB
    total_kib = int(text) if re.fullmatch("[0-9]{1,18}", text) else 0
    return max(0, total_kib - domainxml.withheld_kib(definition))


def _free_pages(pool: Path) -> int:
    """Return how many are neither used nor reserved, with those that the kernel may still make."""

    def count(name: str) -> int:
        try:
            return int((pool / f"{name}_hugepages").read_text())
        except (OSError, ValueError):
            return 0

    return count("free") - count("resv") + max(0, count("nr_overcommit") - count("surplus"))
