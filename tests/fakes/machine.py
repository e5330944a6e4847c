"""A domain of the fake hypervisor, and the image that its memory is saved in."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from snapvm.memory import libvirtimage
from snapvm.model import Domain, GuestDisk, OmittedDisk, SidePlace
from tests.fakes.lvmvolume import FakeVolume

FROZEN = 1 << 63
"""In the stream: the writers wait."""


COOKIE = "<cookie/>"
"""What an image says of the processor that it ran on."""


def image_bytes(count: int, *, frozen: bool = False) -> bytes:
    """Return a save image whose stream is the domain's number, and whether its writers wait."""
    xml, cookie = b"<domain/>\0", f"{COOKIE}\0".encode()
    head = (libvirtimage.MAGIC, 2, len(xml + cookie), 0, 0, len(xml))
    header = struct.pack("<16s5I56x", *head)
    return header + xml + cookie + (count | FROZEN * frozen).to_bytes(8, "little")


@dataclass
class Machine:
    """A domain of the fake: its number, its state, its disks."""

    domain: Domain
    disks: tuple[GuestDisk, ...]
    boot_disks: tuple[GuestDisk, ...] | None = None
    """Those it is defined with, where they are others than it has now."""
    count: int = 0
    held: list[FakeVolume] = field(default_factory=list)
    agent: bool = True
    """Somebody in the guest answers."""
    frozen: bool = False
    """Its writers stand still; that is in its memory like anything else."""
    clock_behind_seconds: float = 0.0
    omitted: tuple[OmittedDisk, ...] = ()
    """What it has besides, and nobody captures."""
    places: tuple[SidePlace, ...] = ()
    """Where it keeps its UEFI variables and its TPM, in real files."""
