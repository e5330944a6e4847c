"""What LVM made otherwise than it was asked for is no snapshot."""

from __future__ import annotations

import pytest

from snapvm.failures import SnapshotFailed
from snapvm.model import DomainState
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import take


def test_a_volume_that_has_got_the_name_of_a_disk_is_not_recorded_as_it(scene: Scene) -> None:
    """A domain runs on below a volume that is renamed; LVM is told the name that it had."""
    before, disk = scene.lvm.names(), scene.lvm.named("vg0", "demo-d0")

    def swap(deed: str) -> None:
        if deed == "capture":
            disk.name = "former"
            scene.lvm.add_disk("vg0", "demo-d0", pool=disk.pool, data="another's")

    scene.hypervisor.before = swap
    with pytest.raises(SnapshotFailed, match=r"not of the disk, .* now called demo-d0"):
        take(scene)
    assert scene.lvm.names() == before | {"vg0/former"}
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("fault", ["writable", "of no set", "of no disk"])
def test_a_snapshot_that_is_not_as_it_was_asked_for_is_not_recorded(
    scene: Scene, fault: str
) -> None:
    def spoil(deed: str) -> None:
        if deed != "drain":
            return
        made = next(volume for volume in scene.lvm.volumes if volume.origin == "demo-d1")
        if fault == "writable":
            made.writable = True
        elif fault == "of no set":
            made.tags = {tag for tag in made.tags if not tag.startswith("snapvm.set")}
        else:
            made.origin = ""

    scene.hypervisor.before = spoil
    with pytest.raises(SnapshotFailed, match=r"vg1/demo-d1\S* was not made as requested"):
        take(scene)
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
