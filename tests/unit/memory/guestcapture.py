"""A guest made by hand is captured, with much memory for it or little."""

from __future__ import annotations

from pathlib import Path

from snapvm.memory.guestcapture import GuestCapture
from snapvm.memory.xenframes import survey
from snapvm.model import Silent
from snapvm.xenguest import WrittenImage
from tests.fakes.xenmachine import HOST, Change, FixedMemory, Machine
from tests.unit.memory.xen_builders import CONFIG, MFN_BASE, OWNED

ONE = b"changed!" * 512
TABLES = 6
PLENTY = 1 << 40
SOME = OWNED * 4096 // 2
"""Of memory: no room for all pages, but for what is kept in place of them."""
LITTLE = OWNED * 4096 // 24
"""Of memory: not enough for what may change."""
NOTHING: Change = lambda _: None  # noqa: E731


def begun(
    path: Path,
    machine: Machine,
    budget_bytes: int = PLENTY,
    *,
    domain_ends: bool = False,
    definition: str = CONFIG,
) -> GuestCapture:
    """Make the file of an image, of which nothing is captured yet."""
    memory = FixedMemory(budget_bytes)
    return GuestCapture(path, definition, HOST, machine, memory, domain_ends=domain_ends)


def make(
    path: Path,
    machine: Machine,
    *,
    meanwhile: Change = NOTHING,
    after: Change = NOTHING,
    budget_bytes: int = PLENTY,
    domain_ends: bool = False,
    definition: str = CONFIG,
) -> tuple[WrittenImage, str]:
    """Capture: ``meanwhile`` happens while it runs, ``after`` when it runs again."""
    image = begun(path, machine, budget_bytes, domain_ends=domain_ends, definition=definition)
    try:
        method = image.prepare(machine.shared_info, Silent())
        image.rehearse(machine.shared_info())
        meanwhile(machine)
        image.catch(machine.standing())
        after(machine)
        return image.write(Silent()), method
    finally:
        image.close()
        assert not machine.open_mappings


def frames_of(path: Path) -> dict[int, bytes]:
    with survey(path) as image:
        pages = {pfn: image.read_frame(pfn) for pfn in range(image.end_pfn + 1)}
    return {pfn: page for pfn, page in pages.items() if page is not None}


def expected(machine: Machine) -> dict[int, bytes]:
    """What an image must hold: the guest of the builder, and the tree of its p2m."""
    pages = dict(machine.guest.pages)
    for pfn in (30, 31):
        pages[pfn] = machine.pages[MFN_BASE + pfn]
    return pages
