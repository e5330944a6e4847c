"""A volume group that is away: what snapvm has in it is not gone, and comes back with it."""

from __future__ import annotations

import pytest

from snapvm import checking, consistency, repair
from snapvm.attention import LeftBehind
from snapvm.errors import ExitStatus
from snapvm.failures import CommandTimedOut, DeleteStopped
from snapvm.model import DomainState, Record, Silent
from snapvm.refusals import GroupAway
from tests.fakes.lvm import UNSEEN
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import roll_back, take, take_half

SEEN = {
    "unseen": UNSEEN,
    "exported": {"vg_attr": "wzx-n-"},
    "foreign": {"vg_systemid": "host2"},
    "shared": {"vg_lock_type": "sanlock"},
    "silent": {"vg_attr": "wz--nc"},
}
"""What vgs says of a group that lvs does not show."""

TOLD = {
    "unseen": ("vg1 is not visible to LVM, and demo@a has volumes in it", "iscsiadm"),
    "exported": ("vg1 is exported", "vgimport vg1"),
    "foreign": ("another host (system ID host2)", "lvmsystemid(7)"),
    "shared": ("with other hosts (sanlock)", "vgchange --lockstart vg1"),
    "silent": ("hides its volumes", "lvs vg1"),
    "partial": ("lacks physical volumes", "vgextend --restoremissing vg1 DEVICE;"),
}


def leave(scene: Scene, how: str = "unseen") -> None:
    """Have the second group go away, or lose a physical volume that all in it lies on."""
    if how in SEEN:
        scene.lvm.away["vg1"] = SEEN[how]
    else:
        for volume in scene.lvm.volumes:
            volume.health = how if volume.vg == "vg1" else ""


def come_back(scene: Scene) -> None:
    """Have it back as it was."""
    scene.lvm.away.clear()
    for volume in scene.lvm.volumes:
        volume.health = ""


def left_of(scene: Scene, record: Record) -> list[str]:
    """Return what there is of a record's volumes, seen or not."""
    return sorted(name for name in scene.lvm.names() if name.endswith(f".{record.id}"))


def delete_half(scene: Scene, record: Record) -> None:
    """Delete a record, and be stopped before the volume in the second group goes."""

    def hang(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove" and argv[-1] == "vg1":
            raise CommandTimedOut(argv=argv, seconds=300)

    scene.lvm.before = hang
    with pytest.raises(LeftBehind):
        consistency.delete(scene.host, [record], Silent())
    scene.lvm.before = lambda _argv: None
    assert scene.ids() == [] and left_of(scene, record) == [f"vg1/demo-d1.{record.id}"]


@pytest.mark.parametrize("how", TOLD)
def test_what_a_group_has_that_is_away_is_not_deleted(scene: Scene, how: str) -> None:
    record = take(scene, "a")
    before = scene.lvm.names()
    leave(scene, how)
    with pytest.raises(GroupAway) as refused:
        consistency.delete(scene.host, [record], Silent())
    why, remedy = TOLD[how]
    assert why in str(refused.value) and remedy in refused.value.hint()
    assert "snapvm delete --forget-missing demo@a" in refused.value.hint()
    assert scene.ids() == ["a"] and scene.lvm.names() == before
    come_back(scene)
    consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [] and left_of(scene, record) == []


@pytest.mark.parametrize("how", TOLD)
def test_who_says_so_leaves_it_behind(scene: Scene, how: str) -> None:
    record = take(scene, "a")
    leave(scene, how)
    consistency.delete(scene.host, [record], Silent(), forget_missing=True)
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()
    assert left_of(scene, record) == ["vg1/demo-d1.a"]


def test_all_of_several_stay_when_one_has_volumes_there(scene: Scene) -> None:
    records = [take(scene, "a"), take(scene, "b")]
    for volume in scene.lvm.volumes:
        volume.health = "partial" if volume.name == "demo-d1.b" else ""
    with pytest.raises(GroupAway, match="demo@b"):
        consistency.delete(scene.host, records, Silent())
    assert scene.ids() == ["a", "b"]


def test_a_prune_skips_what_has_volumes_there_and_goes_on(scene: Scene) -> None:
    records = [take(scene, name) for name in "abc"]
    for volume in scene.lvm.volumes:
        volume.health = "partial" if volume.name == "demo-d1.b" else ""
    with pytest.raises(DeleteStopped) as stopped:
        consistency.prune(scene.host, [records], Silent())
    assert stopped.value.exit_status is ExitStatus.FAILED
    assert stopped.value.deleted == ("demo@a", "demo@c")
    assert stopped.value.untouched == ("demo@b",)
    assert str(stopped.value).endswith("deleted demo@a, demo@c, not touched demo@b")
    assert isinstance(stopped.value.because, GroupAway)
    assert scene.ids() == ["b"] and len(left_of(scene, records[1])) == 2


def test_nobody_is_told_to_remove_what_has_lost_nothing(scene: Scene) -> None:
    """A disk is partial as soon as a thick snapshot of it is: vgreduce --force removes both."""
    record = take(scene, "a")
    leave(scene, "partial")
    with pytest.raises(GroupAway) as refused:
        consistency.delete(scene.host, [record], Silent())
    (finding,) = checking.look(scene.host, DOMAIN, Silent(), deep=False)
    for told in (refused.value.hint(), finding.remedy):
        assert "lvconvert --repair" in told and "vgreduce --removemissing vg1 (not with" in told


def test_a_prune_that_has_to_skip_all_is_refused(scene: Scene) -> None:
    records = [take(scene, name) for name in "ab"]
    leave(scene)
    with pytest.raises(GroupAway, match="demo@a, demo@b have volumes in it") as refused:
        consistency.prune(scene.host, [records], Silent())
    assert refused.value.exit_status is ExitStatus.REFUSED
    assert scene.ids() == ["a", "b"]


def test_a_delete_that_began_waits_for_its_group(scene: Scene) -> None:
    """The volumes of a snapshot that is not listed any more would be nobody's."""
    record = take(scene, "a")
    delete_half(scene, record)
    leave(scene)
    with pytest.raises(LeftBehind, match="vg1 is not visible") as left:
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert "snapvm repair --forget-missing demo" in left.value.hint()
    assert len(scene.host.catalog.leftovers(UUID)) == 1
    come_back(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID) == () and left_of(scene, record) == []


def test_a_delete_that_began_is_ended_without_its_group_by_who_says_so(scene: Scene) -> None:
    record = take(scene, "a")
    delete_half(scene, record)
    leave(scene)
    consistency.repair_all(scene.host, DOMAIN, Silent(), forget_missing=True)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert left_of(scene, record) == ["vg1/demo-d1.a"]


@pytest.mark.parametrize("how", TOLD)
def test_a_check_says_what_is_the_matter_with_the_group(scene: Scene, how: str) -> None:
    take(scene, "a")
    leave(scene, how)
    (finding,) = checking.look(scene.host, DOMAIN, Silent(), deep=False)
    why, remedy = TOLD[how]
    assert why.partition(",")[0] in finding.problem and remedy in finding.remedy
    assert "snapvm delete" not in finding.remedy and "is gone" not in finding.problem


@pytest.mark.parametrize("how", TOLD)
def test_nothing_is_gone_back_to_without_its_group(scene: Scene, how: str) -> None:
    record = take(scene, "a")
    before = scene.lvm.names()
    leave(scene, how)
    why, remedy = TOLD[how]
    with pytest.raises(GroupAway) as refused:
        roll_back(scene, record)
    assert why in str(refused.value) and remedy in refused.value.hint()
    assert scene.lvm.names() == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_take_that_died_waits_for_its_group(scene: Scene) -> None:
    """Its journal is all that tells whose those volumes are, and that they may go."""
    before = scene.lvm.names()
    take_half(scene, "a")
    made = {name for name in scene.lvm.names() - before if name.startswith("vg1/")}
    assert made
    leave(scene)
    for _ in range(2):
        with pytest.raises(LeftBehind, match="vg1 is not visible") as left:
            repair.finish_pending(scene.host, UUID, DOMAIN)
        assert "snapvm repair --forget-missing demo" in left.value.hint()
        assert scene.lvm.names() == before | made, "what is elsewhere has gone"
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
        assert len(scene.host.catalog.leftovers(UUID)) == 1
    come_back(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_a_take_that_died_is_taken_back_in_a_group_of_another_name(scene: Scene) -> None:
    before = {name.replace("vg1/", "renamed/") for name in scene.lvm.names()}
    take_half(scene, "a")
    scene.lvm.rename_group("vg1", "renamed")
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_a_take_that_died_is_given_up_without_its_group_by_who_says_so(scene: Scene) -> None:
    take_half(scene, "a")
    leave(scene)
    consistency.repair_all(scene.host, DOMAIN, Silent(), forget_missing=True)
    assert scene.host.catalog.leftovers(UUID) == ()
