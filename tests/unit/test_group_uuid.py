"""Which group a volume is in is known by the group's uuid: copies, renames, splits and merges."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, orphans, repair
from snapvm.attention import LeftBehind, NotStarted
from snapvm.lvm import argv
from snapvm.lvm.health import VolumeState, of_disk
from snapvm.model import DomainState, GuestDisk, Record, Role, Silent, VgUuid
from snapvm.refusals import GroupAway, RecordUnusable, VolumeRefused
from tests.fakes.lvm import UNSEEN
from tests.fakes.scene import DOMAIN, GROUPS, UUID, Scene, make_scene
from tests.unit.deeds import (
    begun,
    delete,
    die,
    fail_deed,
    hang,
    mend,
    revive,
    roll_back,
    take,
    take_half,
)


def take_away(scene: Scene, *, leaving: str) -> None:
    """Have vg1 go away, and a copy of it be imported under a name."""
    scene.lvm.rename_group("vg1", "hidden")
    scene.lvm.import_copy("hidden", leaving)
    scene.lvm.away["hidden"] = UNSEEN


def bring_back(scene: Scene, copy: str) -> None:
    """Have vg1 again under its name, and no copy."""
    scene.lvm.volumes = [volume for volume in scene.lvm.volumes if volume.vg != copy]
    scene.lvm.away.clear()
    scene.lvm.rename_group("hidden", "vg1")


def contents(scene: Scene, vg: str) -> list[tuple[str, str, str]]:
    """Return all that a copy of a group must keep as it is."""
    volumes = (v for v in scene.lvm.volumes if v.vg == vg)
    return sorted((v.name, v.data, ",".join(sorted(v.tags))) for v in volumes)


def obey(scene: Scene, hint: str) -> None:
    """Do what a hint says is to be typed of `vgchange`, as it stands there."""
    words = shlex.split(hint[hint.index("vgchange --addtag") :].partition(";")[0])
    _, _, tag, vg = words
    scene.lvm.group_tags.setdefault(vg, set()).add(tag)


DEEDS: dict[str, Callable[[Scene, Record], object]] = {"delete": delete, "rollback": roll_back}


@pytest.mark.parametrize("name", ["vg1", "vg1copy"])
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("thick", [(), GROUPS], ids=["thin", "thick"])
def test_a_copy_is_not_taken_for_the_group_that_is_away(
    tmp_path: Path, thick: tuple[str, ...], deed: str, name: str
) -> None:
    scene, record = begun(tmp_path, *thick)
    take_away(scene, leaving=name)
    before, names = contents(scene, name), scene.lvm.names()
    with pytest.raises(GroupAway, match="vg1 is not visible to LVM"):
        DEEDS[deed](scene, record)
    assert contents(scene, name) == before and scene.lvm.names() == names
    assert scene.ids() == [record.id]
    bring_back(scene, name)
    DEEDS[deed](scene, record)
    assert (scene.ids() == []) is (deed == "delete")


@pytest.mark.parametrize("name", ["vg1", "vg1copy"])
def test_a_check_and_a_list_say_that_the_group_is_away(scene: Scene, name: str) -> None:
    record = take(scene)
    take_away(scene, leaving=name)
    (found,) = checking.look(scene.host, DOMAIN, Silent(), deep=False)
    assert "volume group vg1 is not visible" in found.problem
    report = scene.host.lvm.explained(scene.host.lvm.report(), [record.disks[1].snapshot])
    assert of_disk(record.disks[1], report).state is VolumeState.AWAY


def test_another_group_of_its_name_does_not_make_it_gone(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.rename_group("vg1", "hidden")
    scene.lvm.away["hidden"] = UNSEEN
    scene.lvm.add_disk("vg1", "other", pool="")
    (found,) = checking.look(scene.host, DOMAIN, Silent(), deep=False)
    assert "is not visible" in found.problem and "is gone" not in found.problem
    with pytest.raises(GroupAway):
        delete(scene, record)
    assert scene.ids() == [record.id]


def test_a_take_that_died_is_not_taken_back_in_a_copy(scene: Scene) -> None:
    take_half(scene, "a")
    take_away(scene, leaving="vg1")
    before = contents(scene, "vg1")
    with pytest.raises(LeftBehind, match="vg1 is not visible"):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert contents(scene, "vg1") == before
    bring_back(scene, "vg1")
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert not any(".a" in name for name in scene.lvm.names())


@pytest.mark.parametrize("thick", [(), GROUPS], ids=["thin", "thick"])
def test_a_rollback_that_died_is_not_taken_back_in_a_copy(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    scene, record = begun(tmp_path, *thick)
    before = scene.lvm.names()
    fail_deed(scene, "stop")
    hang(scene, "lvremove", "lvrename")
    with pytest.raises(LeftBehind):
        roll_back(scene, record)
    revive(scene)
    take_away(scene, leaving="vg1")
    copied = contents(scene, "vg1")
    with pytest.raises(LeftBehind, match="LVM does not report vg1/demo-d1"):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert contents(scene, "vg1") == copied
    bring_back(scene, "vg1")
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("where", ["freeze", "stop", "restore"])
def test_a_group_that_is_renamed_amid_a_killed_rollback_has_a_way_out(
    tmp_path: Path, where: str
) -> None:
    scene, record = begun(tmp_path)
    die(scene, record, where)
    scene.lvm.rename_group("vg1", "renamed")
    with pytest.raises(NotStarted if where == "restore" else LeftBehind) as told:
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert "vgrename renamed vg1" in told.value.hint()
    scene.lvm.rename_group("renamed", "vg1")
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.disk_data() == (["5", "5"] if where == "restore" else ["8", "8"])


def test_a_delete_finds_its_group_under_another_name_beside_a_copy(scene: Scene) -> None:
    before = {name.replace("vg1/", "renamed/") for name in scene.lvm.names()}
    record = take(scene)
    scene.lvm.rename_group("vg1", "renamed")
    scene.lvm.import_copy("renamed", "vg1")
    copied = contents(scene, "vg1")
    delete(scene, record)
    assert contents(scene, "vg1") == copied
    assert {name for name in scene.lvm.names() if not name.startswith("vg1/")} == before


def rename_for_the_domain(scene: Scene) -> None:
    """Give vg1 another name, and have the domain use that."""
    scene.lvm.rename_group("vg1", "renamed")
    first, second = scene.machine.disks
    disk = GuestDisk(target=second.target, device=Path("/dev/renamed/demo-d1"))
    scene.machine.disks = (first, disk)


def test_a_rollback_goes_back_in_a_group_of_another_name(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, state=DomainState.SHUTOFF)
    record = take(scene)
    scene.lvm.named("vg1", "demo-d1").data = "later"
    rename_for_the_domain(scene)
    roll_back(scene, record)
    assert scene.lvm.named("renamed", "demo-d1").data == "0"
    assert checking.look(scene.host, None, Silent(), deep=False) == ()


def test_a_rollback_with_memory_wants_the_name_that_stands_in_the_image(scene: Scene) -> None:
    record = take(scene)
    rename_for_the_domain(scene)
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match="named in the memory image") as refused:
        roll_back(scene, record)
    assert refused.value.hint() == "vgrename renamed vg1" and scene.lvm.names() == before


def split(scene: Scene) -> None:
    """Have all that belongs to the domain split off vg1, in which something else stays."""
    for volume in scene.lvm.volumes:
        volume.vg = "split" if volume.vg == "vg1" else volume.vg
    scene.lvm.add_disk("vg1", "other", pool="")


def merge(scene: Scene) -> None:
    """Have vg1 merged into a group that has volumes of its own."""
    scene.lvm.add_disk("split", "other", pool="")
    scene.lvm.merge_group("vg1", "split")


def empty(scene: Scene) -> None:
    """Have all split off vg1, which stays without a volume."""
    for volume in scene.lvm.volumes:
        volume.vg = "split" if volume.vg == "vg1" else volume.vg


@pytest.mark.parametrize("change", [split, merge, empty])
def test_what_a_group_became_is_said_by_a_tag(
    scene: Scene, change: Callable[[Scene], None]
) -> None:
    record = take(scene)
    change(scene)
    before = scene.lvm.names()
    with pytest.raises(GroupAway) as refused:
        delete(scene, record)
    assert scene.lvm.names() == before and scene.ids() == [record.id]
    (found,) = checking.look(scene.host, DOMAIN, Silent(), deep=False)
    assert "vgchange --addtag" in found.remedy
    obey(scene, refused.value.hint())
    assert checking.look(scene.host, None, Silent(), deep=False) == ()
    delete(scene, record)
    assert scene.ids() == [] and not any(record.id in name for name in scene.lvm.names())


@pytest.mark.parametrize("change", [split, merge, empty])
def test_a_take_that_died_is_taken_back_in_what_its_group_became(
    scene: Scene, change: Callable[[Scene], None]
) -> None:
    take_half(scene, "half")
    change(scene)
    with pytest.raises(LeftBehind) as left:
        mend(scene)
    assert any("demo-d1.half" in name for name in scene.lvm.names())
    obey(scene, left.value.hint())
    mend(scene)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert not any("half" in name for name in scene.lvm.names())


def test_the_tag_says_nothing_of_a_copy_that_has_it_too(scene: Scene) -> None:
    record = take(scene)
    split(scene)
    with pytest.raises(GroupAway) as refused:
        delete(scene, record)
    obey(scene, refused.value.hint())
    scene.lvm.import_copy("split", "copy")
    scene.lvm.group_tags["copy"] = scene.lvm.group_tags["split"]
    copied = contents(scene, "copy")
    scene.lvm.away["split"] = UNSEEN
    with pytest.raises(GroupAway):
        delete(scene, record)
    scene.lvm.away.clear()
    delete(scene, record)
    assert contents(scene, "copy") == copied
    assert not any(record.id in name for name in scene.lvm.names() if "copy/" not in name)


def test_two_groups_that_are_both_said_to_be_it_are_refused(scene: Scene) -> None:
    record = take(scene)
    split(scene)
    scene.lvm.import_copy("split", "copy")
    was = record.disks[1].volume.vg_uuid
    uuids = {v.vg: v.vg_uuid for v in scene.host.lvm.report().volumes}
    for vg in ("split", "copy"):
        scene.lvm.group_tags[vg] = {argv.became_tag(was, uuids[vg])}
    with pytest.raises(VolumeRefused, match="copy, split is tagged as what vg1 was") as told:
        delete(scene, record)
    assert told.value.hint().endswith("vgchange --deltag TAG GROUP")


def test_what_is_in_a_copy_is_nobody_s_orphan(scene: Scene) -> None:
    """A copy made for a backup outlives the snapshots that were copied with it."""
    record = take(scene)
    scene.lvm.import_copy("vg0", "copy")
    delete(scene, record)
    take(scene, "b")
    copied = contents(scene, "copy")
    assert orphans.strays(scene.host, scene.host.lvm.report()) == ()
    assert checking.look(scene.host, None, Silent(), deep=False) == ()
    repair.remove_orphans(scene.host, [])
    assert contents(scene, "copy") == copied


def test_a_volume_of_before_says_nothing_of_its_group(scene: Scene) -> None:
    record = take(scene)
    before = replace(record.disks[0].volume, vg_uuid=VgUuid(""))
    left = scene.lvm.add_disk("vg0", "left")
    left.tags = set(argv.tags("0" * 12, before, Role.NEW))
    (stray,) = orphans.strays(scene.host, scene.host.lvm.report())
    assert stray.volume.name == "left"


def test_a_snapshot_that_was_removed_is_gone_though_a_copy_has_it(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.import_copy("vg1", "copy")
    gone = record.disks[1].snapshot
    scene.lvm.volumes.remove(scene.lvm.named(gone.vg, gone.lv))
    with pytest.raises(RecordUnusable, match="is gone"):
        roll_back(scene, record)
