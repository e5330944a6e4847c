"""A volume group that a guest made on a LUN which this host sees: it names and tags as it likes."""

from __future__ import annotations

import pytest

from snapvm import consistency, rebuilding
from snapvm.consistency import TakeRequest
from snapvm.model import Silent
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.scene import DOMAIN, GROUPS, UUID, Scene
from tests.unit.deeds import make_anew


def make_like(scene: Scene, vg: str) -> list[FakeVolume]:
    """Make volumes that say what those of a group do, of a set of their own."""
    scene.lvm.import_copy(vg, "guest")
    theirs = [v for v in scene.lvm.volumes if v.vg == "guest" and f"{DOMAIN}-" in v.name]
    for volume in theirs:
        volume.uuid = volume.uuid.replace("0", "a")
        kept = {tag for tag in volume.tags if not tag.startswith(("snapvm.set=", "snapvm.vg="))}
        volume.tags = kept and kept | {"snapvm.set=0123456789ab"}
    return theirs


@pytest.mark.parametrize("is_first", [False, True], ids=["behind", "before"])
def test_of_two_sets_that_claim_a_record_none_is_believed(scene: Scene, is_first: bool) -> None:
    """The record was made anew with the disks of whichever LVM told of first."""
    request = TakeRequest(domain=DOMAIN, name="x", with_memory=False)
    record = consistency.take(scene.host, request, Silent())
    known = list(scene.lvm.volumes)
    theirs = [volume for vg in GROUPS for volume in make_like(scene, vg)]
    scene.lvm.volumes = [*theirs, *known] if is_first else [*known, *theirs]
    file = scene.host.catalog.path(record, "snapshot.json")
    file.write_text("")
    rebuilt, hopeless = rebuilding.look(scene.host)
    assert rebuilt == () and {lost.ref for lost in hopeless} == {record.ref}
    for lost in hopeless:
        assert "guest/demo-d0.x" in lost.why and "vg0/demo-d0.x" in lost.why
    scene.lvm.volumes = known
    (right,), _ = rebuilding.look(scene.host)
    assert make_anew(scene, right) == ""
    assert scene.host.catalog.get(UUID, record.id).disks == record.disks
