"""The disks of a scene, and what somebody else does with them."""

from __future__ import annotations

from pathlib import Path

from snapvm.model import Domain, GuestDisk, Record
from snapvm.refusals import DiskRefused
from tests.fakes.scene import UUID, Scene

OTHER = "other"


def detach(scene: Scene) -> None:
    """Take the second disk away from the domain."""
    scene.machine.disks = scene.machine.disks[:1]
    for volume in scene.machine.held[1:]:
        volume.opened = False
    del scene.machine.held[1:]


def restore_brings(scene: Scene, disks: tuple[GuestDisk, ...]) -> None:
    """Have a restore give the domain these disks, which its image names."""

    def before(deed: str) -> None:
        if deed == "restore":
            scene.machine.disks = disks

    scene.hypervisor.before = before


def volumes(scene: Scene) -> dict[str, tuple[str, str]]:
    """Return what every volume is, and holds, by name."""
    return {f"{v.vg}/{v.name}": (v.uuid, v.data) for v in scene.lvm.volumes}


def assert_untouched(scene: Scene, before: dict[str, tuple[str, str]], record: Record) -> None:
    assert volumes(scene) == before
    assert scene.ids() == [record.id] and scene.host.catalog.leftovers(UUID) == ()


def is_a_file(domain: Domain) -> object:
    """Tell of no drives, as libvirt's driver does."""
    raise DiskRefused(domain=domain.name, target="vdc", why="it is the file /x")


def attach(scene: Scene) -> None:
    """Give the domain a third disk."""
    volume = scene.lvm.add_disk("vg0", "demo-d2", data="8")
    scene.machine.disks += (GuestDisk(target="vdc", device=Path("/dev/vg0/demo-d2")),)
    scene.machine.held.append(volume)
    volume.opened = True
