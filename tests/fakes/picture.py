"""What of a scene must be as it was where a command says that all was put back."""

from __future__ import annotations

from snapvm.failures import CommandFailed
from tests.fakes.scene import DOMAIN, UUID, Scene

Picture = tuple[object, ...]


def disks(scene: Scene) -> list[str]:
    """Return what is on the disks; of one whose name nothing has that there is none."""
    found = []
    for vg, name in (("vg0", "demo-d0"), ("vg1", "demo-d1")):
        try:
            found.append(scene.lvm.named(vg, name).data)
        except CommandFailed:
            found.append(f"none of {vg}")
    return found


def picture(scene: Scene) -> Picture:
    return (
        sorted(scene.lvm.names()),
        sorted(scene.ids()),
        [str(left.path.name) for left in scene.host.catalog.leftovers(UUID)],
        scene.hypervisor.state_of(DOMAIN),
        disks(scene),
    )
