"""A copy of a volume group on the same host: its volumes have the uuids of the ones they copy."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency, orphans
from snapvm.lvm import argv, device, health
from snapvm.lvm.health import VolumeState
from snapvm.model import GuestDisk, Record, Role, Silent, VgUuid
from snapvm.refusals import RecordUnusable, VolumeRefused
from tests.fakes.scene import DOMAIN, GROUPS, UUID, Scene, make_scene
from tests.unit.deeds import begun, roll_back, take

COPIES = ("vg0copy", "a-copy")


def copied(scene: Scene, *, is_first: bool) -> set[str]:
    """Import a copy of every group, which LVM reports first or last; return what is in them."""
    for vg, copy in zip(GROUPS, COPIES, strict=True):
        scene.lvm.import_copy(vg, copy)
    if is_first:
        scene.lvm.volumes.sort(key=lambda volume: volume.vg not in COPIES)
    return in_copies(scene)


def in_copies(scene: Scene) -> set[str]:
    return {name for name in scene.lvm.names() if name.partition("/")[0] in COPIES}


def test_a_report_has_the_volumes_of_both(scene: Scene) -> None:
    copied(scene, is_first=False)
    seen = {str(volume.ref) for volume in scene.host.lvm.report().volumes}
    assert seen == scene.lvm.names() and len(seen) == 8


@pytest.mark.parametrize("is_first", [False, True])
def test_a_delete_takes_those_of_the_group_it_knows(scene: Scene, *, is_first: bool) -> None:
    before = scene.lvm.names()
    record = take(scene)
    copies = copied(scene, is_first=is_first)
    consistency.delete(scene.host, [record], Silent())
    assert scene.lvm.names() == before | copies and scene.ids() == []


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("thick", [(), GROUPS], ids=["thin", "thick"])
def test_a_rollback_goes_back_in_the_group_it_knows(
    tmp_path: Path, thick: tuple[str, ...], *, is_first: bool
) -> None:
    scene, record = begun(tmp_path, *thick)
    copies = copied(scene, is_first=is_first)
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and scene.machine.count == 5
    assert in_copies(scene) == copies
    assert {scene.lvm.named(copy, f"{DOMAIN}-d{n}").data for n, copy in enumerate(COPIES)} == {"8"}


@pytest.mark.parametrize("is_first", [False, True])
def test_a_take_goes_by_the_device(scene: Scene, *, is_first: bool) -> None:
    copied(scene, is_first=is_first)
    # The domain is moved to the copies.
    for number, (vg, copy) in enumerate(zip(GROUPS, COPIES, strict=True)):
        name = f"{DOMAIN}-d{number}"
        scene.lvm.named(vg, name).opened, used = False, scene.lvm.named(copy, name)
        used.active = used.opened = True
        if used.pool:
            scene.lvm.named(used.vg, used.pool).active = True
    scene.machine.disks = tuple(
        GuestDisk(target=disk.target, device=Path("/dev", copy, disk.device.name))
        for disk, copy in zip(scene.machine.disks, COPIES, strict=True)
    )
    record = take(scene)
    assert [disk.volume.vg for disk in record.disks] == list(COPIES)
    assert [disk.snapshot.vg for disk in record.disks] == list(COPIES)


def take_as_before(scene: Scene) -> Record:
    """Take a snapshot as an older snapvm did, which wrote down no uuid of a group."""
    path = scene.host.catalog.path(take(scene), "snapshot.json")
    written = json.loads(path.read_text())
    for disk in written["disks"]:
        del disk["volume"]["vg_uuid"], disk["snapshot"]["vg_uuid"]
    path.write_text(json.dumps(written))
    (record,) = scene.host.catalog.records(UUID)
    return record


@pytest.mark.parametrize("work", ["delete", "rollback"])
def test_nothing_is_done_on_a_guess(scene: Scene, work: str) -> None:
    record = take_as_before(scene)
    copied(scene, is_first=False)
    scene.lvm.rename_group("vg1", "vg1old")
    before = scene.lvm.names()
    names = f"a-copy/demo-d1.{record.id} or vg1old/demo-d1.{record.id} is refused"
    with pytest.raises(VolumeRefused, match=names) as refused:
        if work == "delete":
            consistency.delete(scene.host, [record], Silent())
        else:
            roll_back(scene, record)
    assert "vgrename" in refused.value.hint()
    assert scene.lvm.names() == before and scene.ids() == [record.id]
    scene.lvm.rename_group("vg1old", "vg1")
    consistency.delete(scene.host, [record], Silent())
    assert {name for name in scene.lvm.names() if record.id in name} == {
        f"{copy}/demo-d{number}.{record.id}" for number, copy in enumerate(COPIES)
    }


@pytest.mark.parametrize("work", ["delete", "rollback"])
def test_what_is_gone_is_not_looked_for_in_a_copy(scene: Scene, work: str) -> None:
    record = take(scene)
    copies = copied(scene, is_first=False)
    for disk in record.disks:
        scene.lvm.volumes.remove(scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv))
    before = scene.lvm.names()
    if work == "delete":
        consistency.delete(scene.host, [record], Silent())
        assert in_copies(scene) == copies and scene.ids() == []
    else:
        with pytest.raises(RecordUnusable, match="is gone"):
            roll_back(scene, record)
    assert scene.lvm.names() == before


def test_what_is_gone_is_not_removed_from_a_copy_of_a_renamed_group(scene: Scene) -> None:
    record = take_as_before(scene)
    copied(scene, is_first=False)
    gone = record.disks[1].snapshot
    scene.lvm.volumes.remove(scene.lvm.named(gone.vg, gone.lv))
    scene.lvm.rename_group("vg1", "vg1old")
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match="which of the groups a-copy, vg1old was vg1"):
        consistency.delete(scene.host, [record], Silent())
    assert scene.lvm.names() == before and scene.ids() == [record.id]


def test_what_may_be_one_of_two_is_not_called_well(scene: Scene) -> None:
    record = take_as_before(scene)
    copied(scene, is_first=False)
    scene.lvm.rename_group("vg1", "vg1old")
    report = scene.host.lvm.report()
    states = [health.of_disk(disk, report).state for disk in record.disks]
    assert states == [VolumeState.OK, VolumeState.UNKNOWN]
    (finding,) = checking.look(scene.host, DOMAIN, Silent(), deep=False)
    assert "cannot be told" in finding.problem and "vgrename" in finding.remedy


def test_of_orphans_only_those_that_were_looked_at_go(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene)
    left = scene.lvm.add_disk("vg0", "left")
    before = replace(record.disks[0].volume, vg_uuid=VgUuid(""))
    left.tags = set(argv.tags("0" * 12, before, Role.NEW))
    scene.lvm.import_copy("vg0", "vg0copy")
    seen = orphans.of(scene.host, scene.host.lvm.report())
    assert {str(volume.ref) for volume in seen} == {"vg0/left", "vg0copy/left"}
    orphans.remove(scene.host, [volume for volume in seen if volume.vg == "vg0copy"], [])
    assert "vg0/left" in scene.lvm.names() and "vg0copy/left" not in scene.lvm.names()


def test_a_device_tells_the_uuids_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stat, "S_ISBLK", lambda _mode: True)
    path = tmp_path / "0:0" / "dm" / "uuid"
    path.parent.mkdir(parents=True)
    path.write_text("LVM-" + "V" * 32 + "L" * 32 + "\n")
    (tmp_path / "device").touch()
    found = device.dm_uuid(tmp_path / "device", tmp_path)
    assert found.vg == "VVVVVV-VVVV-VVVV-VVVV-VVVV-VVVV-VVVVVV"
    assert found.lv == "LLLLLL-LLLL-LLLL-LLLL-LLLL-LLLL-LLLLLL"


def test_a_snapshot_of_another_group_than_its_disk_is_not_gone_back_to(scene: Scene) -> None:
    """As after vgsplit(8), which keeps uuids too."""
    record = take_as_before(scene)
    snapshot = record.disks[1].snapshot
    scene.lvm.named(snapshot.vg, snapshot.lv).vg = "split"
    before = scene.lvm.names()
    with pytest.raises(RecordUnusable, match="not in the group of vg1/demo-d1"):
        roll_back(scene, record)
    assert scene.lvm.names() == before
