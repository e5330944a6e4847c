"""How large the pages of a domain's memory are: QEMU protects and copies them as a whole."""

from __future__ import annotations

import re
from pathlib import Path

from snapvm.hypervisor import domainxml

MEMINFO = Path("/proc/meminfo")
_PAGE_SIZES = ("./memoryBacking/hugepages/page", "size"), ("./devices/memory/source/pagesize", "")
"""Where libvirt tells them, in KiB; in an attribute, or as text (libvirt, docs/formatdomain)."""


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
    """Return the size of those for which nothing is said (proc(5), Hugepagesize); 0 if unknown."""
    try:
        found = re.search(r"^Hugepagesize:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
