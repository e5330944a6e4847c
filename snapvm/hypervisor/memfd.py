"""Have all memory of a guest there before it stands still, where that is in a memfd.

Whichever way memory is captured, QEMU reads all of it; for background-snapshot it reads a byte of
every page before it protects them, in the pause (QEMU, migration/ram.c, populate_read_range).
Where a guest has never been, memory of its own costs nothing then: the kernel has one page of zeros
for all of that.  But in a memfd or in /dev/shm, shared or not, each page has to be made (Linux,
mm/shmem.c, shmem_fault): of the first pause of a guest in the lab 2.5 s were that, for 160 MiB.  So
it is read before, while the guest runs.  Where the host has not so much memory left, nothing is
captured: the kernel would end a process, perhaps the guest's.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from snapvm.hypervisor import qemurun, smaps
from snapvm.hypervisor.smaps import Mapping
from snapvm.model import Domain, Progress
from snapvm.refusals import DomainRefused

MEMINFO = Path("/proc/meminfo")
_PATHS = ("/memfd:", "/dev/shm/", "/dev/zero ")  # noqa: S108 - nothing is written there
"""What such memory is called in ``maps`` (memfd_create(2), shm_open(3), mmap(2))."""
_SPARE = re.compile(r"^(MemAvailable|SwapFree):\s+(\d+) kB$", re.MULTILINE)
"""What the host can still give (proc_meminfo(5))."""
_THERE = 0x80
"""In the state of a page (``smaps.page_states``): it is present (Linux, admin-guide/mm)."""
_SLICE_BYTES = 64 << 20
"""So much is looked at at once."""


def require_room(domain: Domain) -> None:
    """Raise ``DomainRefused`` when this host has no memory for what QEMU is going to read.

    Does nothing when the kernel does not say.
    """
    missing_bytes = _missing_bytes(_mappings(domain))
    try:
        spare = dict(_SPARE.findall(MEMINFO.read_text())) if missing_bytes else {}
    except OSError:
        return
    spare_bytes = sum(map(int, spare.values())) << 10
    if spare and missing_bytes > spare_bytes:
        raise DomainRefused(
            domain=domain.name,
            why=f"it has not used {missing_bytes >> 20} MiB of its memory (memfd) yet, which have "
            f"to be there to be captured, and this host has only {spare_bytes >> 20} MiB left",
            remedy="make room (end another domain, or add swap), or take the disks alone with "
            "--disk-only",
        )


def fill(domain: Domain, progress: Progress) -> None:
    """Read a byte of each page that is not there, as QEMU would; it is only for speed.

    The pages then count as QEMU's, and are in its page table.
    """
    mappings = _mappings(domain)
    pid = qemurun.pid_of(domain.name)
    if pid is not None and _missing_bytes(mappings):
        progress.phase(f"reading the memory that {domain.name} has not used yet")
        with suppress(OSError):
            _fill(pid, mappings, progress)


def _mappings(domain: Domain) -> list[Mapping]:
    """Return the mappings of a live domain's memory in a memfd; none when it cannot be told.

    A virtio-mem device has memory that the guest must not touch, and QEMU does not.  Huge pages of
    a pool are there from the beginning.
    """
    pid = qemurun.pid_of(domain.name)
    if pid is None or "virtio-mem" in domain.definition:
        return []
    try:
        maps = (smaps.PROC / f"{pid}/maps").read_text(errors="replace")
        if not any(path in maps for path in _PATHS):
            return []  # to ask for sizes would have the kernel walk through all of a guest's pages
        each = smaps.of(pid)
    except OSError:
        return []
    small = (mapping for mapping in each if mapping.bytes_of("KernelPageSize") == mmap.PAGESIZE)
    return [mapping for mapping in small if mapping.path.startswith(_PATHS)]


def _missing_bytes(mappings: list[Mapping]) -> int:
    return sum(mapping.length_bytes - mapping.bytes_of("Rss") for mapping in mappings)


def _fill(pid: int, mappings: list[Mapping], progress: Progress) -> None:
    total_bytes = sum(mapping.length_bytes for mapping in mappings)
    done_bytes = 0
    with (
        smaps.page_states(pid) as states,
        (smaps.PROC / f"{pid}/mem").open("rb", buffering=0) as memory,
    ):
        for start, length_bytes in _slices(mappings):
            for page, state in enumerate(states(start, length_bytes)):
                if not state & _THERE:
                    os.pread(memory.fileno(), 1, start + page * mmap.PAGESIZE)
            done_bytes += length_bytes
            progress.advance(done_bytes, total_bytes)


def _slices(mappings: list[Mapping]) -> Iterator[tuple[int, int]]:
    """Yield the address and length of pieces of all mappings."""
    for mapping in mappings:
        for start in range(mapping.start, mapping.end, _SLICE_BYTES):
            yield start, min(_SLICE_BYTES, mapping.end - start)
