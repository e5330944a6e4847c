"""Disks whose names leave no room: what is taken of them is rolled back to, or nothing is taken."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from snapvm import consistency, diagnosis, rebuilding
from snapvm.consistency import TakeRequest
from snapvm.lvm import newname
from snapvm.model import GuestDisk, Silent
from snapvm.refusals import VolumeRefused
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import make_anew

GROUP = "cinder-volumes-fast-ssd-a"
STEM = "volume-8c8a2f0e-8a3b-4d6f-9e21-0c7a4b5d6e7f-web-frontend-root"
"""As OpenStack names them: 103 characters to device-mapper, which has 127."""


def make_long(folder: Path, group: str = GROUP, *, thick: bool = False) -> Scene:
    """Let the domain have two disks in one group, their long names alike but for the end."""
    scene = make_scene(folder, thick=("vg0", "vg1") if thick else ())
    disks = []
    scene.lvm.add_pool(group)
    for target, end in (("vda", "x"), ("vdb", "y")):
        name = f"{STEM}-{end}"
        scene.lvm.add_disk(group, name, pool="" if thick else "pool", data="0")
        disks.append(GuestDisk(target=target, device=Path("/dev", group, name)))
    scene.hypervisor.add(scene.machine.domain, tuple(disks))
    return scene


def data(scene: Scene, group: str = GROUP) -> list[str]:
    return [scene.lvm.named(group, f"{STEM}-{end}").data for end in "xy"]


@pytest.mark.parametrize("thick", [False, True])
@pytest.mark.parametrize("name", [None, "before-the-upgrade-of-the-database"])
def test_long_names_are_rolled_back(tmp_path: Path, name: str | None, thick: bool) -> None:
    scene = make_long(tmp_path, thick=thick)
    scene.count(3)
    record = consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=name), Silent())
    for _ in range(2):
        scene.count(4)
        undo = consistency.rollback(scene.host, record, paused=False, progress=Silent()).undo
        assert data(scene) == ["3", "3"]
    consistency.rollback(scene.host, undo, paused=False, progress=Silent())
    assert data(scene) == ["7", "7"]


def test_what_could_never_be_rolled_back_is_not_taken(tmp_path: Path) -> None:
    scene = make_long(tmp_path, "g" * 110)
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match="longer than device-mapper allows") as told:
        consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="a"), Silent())
    assert f"(vgrename {'g' * 110} NEWNAME), and name that in their def" in told.value.hint()
    assert scene.lvm.names() == before and scene.ids() == []


@pytest.mark.parametrize(("characters", "is_taken"), [(122, True), (123, False), (127, False)])
def test_a_thick_disk_needs_room_for_the_name_of_its_layer(
    tmp_path: Path, characters: int, is_taken: bool
) -> None:
    """LVM found vg0-NAME-real too long, and said so when the domain stood still."""
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    name = "x" * (characters - len("vg0-"))
    scene.lvm.add_disk("vg0", name, pool="", data="0")
    disk = GuestDisk(target="vda", device=Path("/dev/vg0", name))
    scene.hypervisor.add(scene.machine.domain, (disk,))
    before, deeds = scene.lvm.names(), list[str]()
    scene.hypervisor.before = deeds.append
    with nullcontext() if is_taken else pytest.raises(VolumeRefused, match="no thick snapshot"):
        consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="a"), Silent())
    assert scene.ids() == ["a"] * is_taken and ("window" in deeds) is is_taken
    assert (scene.lvm.names() == before) is not is_taken
    refusals = diagnosis.look(scene.host, DOMAIN).refusals
    assert bool(refusals) is not is_taken


def test_two_volumes_never_get_one_name() -> None:
    newname.require_distinct([])
    newname.require_distinct([("vg0", "a"), ("vg1", "a"), ("vg0", "b")])
    with pytest.raises(VolumeRefused, match="vg0/a"):
        newname.require_distinct([("vg0", "a"), ("vg0", "b"), ("vg0", "a")])


@pytest.mark.parametrize("thick", [False, True])
def test_their_records_are_made_anew_after_a_rollback(tmp_path: Path, thick: bool) -> None:
    """What keeps the former disk was called the disk, and to make it writable advised."""
    scene = make_long(tmp_path, thick=thick)
    request = TakeRequest(domain=DOMAIN, name="x" * 40, with_memory=False)
    record = consistency.take(scene.host, request, Silent())
    scene.count(4)
    undo = consistency.rollback(scene.host, record, paused=False, progress=Silent()).undo
    again = consistency.rollback(scene.host, record, paused=False, progress=Silent()).undo
    shutil.rmtree(scene.host.settings.state_dir)
    rebuilt, hopeless = rebuilding.look(scene.host)
    assert hopeless == () and len(rebuilt) == 3
    for each in rebuilt:
        assert make_anew(scene, each) == ""
    for known in (record, undo, again):
        back = scene.host.catalog.get(UUID, known.id)
        assert [disk.volume.lv for disk in back.disks] == [f"{STEM}-{end}" for end in "xy"]
    consistency.rollback(scene.host, undo, paused=False, progress=Silent())
    assert data(scene) == ["4", "4"]


def test_what_keeps_a_former_disk_is_not_taken_for_the_disk(tmp_path: Path) -> None:
    """An older snapvm did not write the name of the disk down."""
    scene = make_long(tmp_path)
    request = TakeRequest(domain=DOMAIN, name="x" * 40, with_memory=False)
    record = consistency.take(scene.host, request, Silent())
    for volume in scene.lvm.volumes:
        volume.tags = {tag for tag in volume.tags if not tag.startswith("snapvm.lv=")}
    file = scene.host.catalog.path(record, "snapshot.json")
    good = file.read_text()
    file.write_text("")
    (back,), _ = rebuilding.look(scene.host)
    assert back.record.disks == record.disks
    file.write_text(good)
    consistency.rollback(scene.host, record, paused=False, progress=Silent())
    file.write_text("")
    rebuilt, (hopeless,) = rebuilding.look(scene.host)
    assert rebuilt == () and "nothing says which disk" in hopeless.why
