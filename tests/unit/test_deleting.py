"""Deleting on fakes: what is chosen goes, all of it, and nothing else."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import consistency, recordfile, repair
from snapvm.attention import LeftBehind
from snapvm.errors import ExitStatus, Locked, SnapvmError, UnknownSnapshot
from snapvm.failures import CommandTimedOut, DeleteStopped
from snapvm.model import DomainState, DomainUuid, Record, Silent, SnapshotId
from snapvm.refusals import (
    SnapshotReplaced,
    VolumeRefused,
)
from tests.fakes.records import disks_only, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.fakes.storage import read_on_nfs
from tests.unit.deeds import roll_back, take, take_half


def test_deleting_leaves_nothing_of_ours(scene: Scene) -> None:
    before = scene.lvm.names()
    record = take(scene)
    undo = roll_back(scene, record).undo
    consistency.delete(scene.host, [record, undo], Silent())
    assert scene.lvm.names() == before
    assert scene.ids() == []


def test_what_a_killed_command_left_is_mended_first_though_one_alone_is_deleted(
    scene: Scene,
) -> None:
    before = scene.lvm.names()
    record = take(scene, "x")
    take_half(scene, "y")
    consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()
    assert scene.lvm.names() == before


def test_an_image_that_is_read_on_nfs_meanwhile_keeps_nobody_from_working(scene: Scene) -> None:
    """Each `take` was refused for as long as a backup read what `prune` had deleted."""
    record = take(scene, "a")
    folder = scene.host.catalog.folder(UUID, record.id)
    assert record.memory is not None
    with read_on_nfs(folder / record.memory.file):
        consistency.delete(scene.host, [record], Silent())
        take(scene, "b")
        assert scene.ids() == ["b"] and not any(".a" in name for name in scene.lvm.names())
    take(scene, "c")
    assert scene.ids() == ["b", "c"] and scene.host.catalog.leftovers(UUID) == ()


def test_a_volume_in_use_is_not_deleted(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.named(record.disks[1].snapshot.vg, record.disks[1].snapshot.lv).opened = True
    with pytest.raises(VolumeRefused):
        consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [record.id]
    assert len(scene.lvm.names()) == 6


@pytest.mark.parametrize("work", ["delete", "prune"])
def test_a_volume_of_another_pool_that_is_built_upon_one_keeps_it(
    tmp_path: Path, work: str
) -> None:
    """LVM removes with an external origin all that is built upon it, when nobody is asked."""
    scene = make_scene(tmp_path)
    records = [take(scene, "a"), take(scene, "b")]
    snapshot = records[0].disks[0].snapshot
    scene.lvm.add_pool("vg0", "fast")
    overlay = scene.lvm.add_disk("vg0", "overlay", pool="fast")
    overlay.origin = snapshot.lv
    before = scene.lvm.names()
    chosen = records[:1] if work == "delete" else records
    with pytest.raises(VolumeRefused, match="external origin of vg0/overlay") as refused:
        consistency.delete(scene.host, chosen, Silent())
    assert refused.value.hint() == "if nothing needs that one: lvremove vg0/overlay"
    assert scene.lvm.names() == before and scene.ids() == ["a", "b"]
    scene.lvm.volumes.remove(overlay)
    consistency.delete(scene.host, chosen, Silent())


def test_a_clone_in_its_own_pool_does_not_keep_a_snapshot(tmp_path: Path) -> None:
    """It shares blocks, and needs no origin."""
    scene = make_scene(tmp_path)
    record = take(scene)
    clone = scene.lvm.add_disk("vg0", "clone")
    clone.origin = record.disks[0].snapshot.lv
    consistency.delete(scene.host, [record], Silent())
    assert "vg0/clone" in scene.lvm.names() and scene.ids() == []


@pytest.mark.parametrize("is_renamed", [False, True])
@pytest.mark.parametrize("is_empty", [False, True])
def test_volumes_that_somebody_removed_do_not_hinder_a_delete(
    scene: Scene, *, is_renamed: bool, is_empty: bool
) -> None:
    """`check` itself says to delete what has lost its volumes; their group is there."""
    record = take(scene)
    gone = record.disks[1].snapshot.lv
    scene.lvm.volumes = [
        volume
        for volume in scene.lvm.volumes
        if volume.vg != "vg1" or not (is_empty or volume.name == gone)
    ]
    if is_renamed and not is_empty:
        scene.lvm.rename_group("vg1", "renamed")
    consistency.delete(scene.host, [record], Silent())
    assert not [volume for volume in scene.lvm.volumes if "snapvm=1" in volume.tags]
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


def test_a_group_that_is_renamed_does_not_hinder_a_delete(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.rename_group("vg1", "renamed")
    consistency.delete(scene.host, [record], Silent())
    assert not [volume for volume in scene.lvm.volumes if "snapvm=1" in volume.tags]
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("failing", ["lvm", "files"])
def test_a_delete_that_fails_half_way_is_finished_by_the_next_command(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = scene.lvm.names()
    record = take(scene)

    def hang(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove":
            raise CommandTimedOut(argv=argv, seconds=300)

    def wear_out(_folder: Path) -> None:
        raise OSError(errno.EIO, "the disk has a bad block")

    with monkeypatch.context() as patch, pytest.raises(LeftBehind):
        if failing == "lvm":
            scene.lvm.before = hang
        else:
            patch.setattr(shutil, "rmtree", wear_out)
        consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [], "it is not visible any more"
    scene.lvm.before = lambda _argv: None
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("work", ["delete", "rollback"])
def test_a_snapshot_that_took_the_name_of_the_chosen_one_is_left_alone(
    scene: Scene, work: str
) -> None:
    """A rotation deletes and takes again while a user thinks at the prompt."""
    chosen = take(scene, "nightly")
    consistency.delete(scene.host, [chosen], Silent())
    scene.count(3)
    newer = take(scene, "nightly")
    before = scene.lvm.names()
    with pytest.raises(SnapshotReplaced):
        if work == "delete":
            consistency.delete(scene.host, [chosen], Silent())
        else:
            roll_back(scene, chosen)
    assert scene.lvm.names() == before
    assert scene.host.catalog.get(UUID, newer.id) == newer
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and scene.machine.count == 3


def test_a_snapshot_that_another_deleted_is_unknown(scene: Scene) -> None:
    chosen = take(scene, "nightly")
    consistency.delete(scene.host, [chosen], Silent())
    with pytest.raises(UnknownSnapshot, match=f"{DOMAIN}@nightly"):
        consistency.delete(scene.host, [chosen], Silent())
    assert scene.host.catalog.leftovers(UUID) == ()


def three(scene: Scene) -> list[Record]:
    return [take(scene, name) for name in "abc"]


def open_one(scene: Scene, record: Record) -> None:
    snapshot = record.disks[1].snapshot
    scene.lvm.named(snapshot.vg, snapshot.lv).opened = True


def test_one_in_the_middle_that_is_in_use_keeps_all(scene: Scene) -> None:
    records = three(scene)
    before = scene.lvm.names()
    open_one(scene, records[1])
    with pytest.raises(VolumeRefused, match="demo@b and is in use") as told:
        consistency.delete(scene.host, records, Silent())
    assert "`fuser -v /dev/vg" in told.value.hint(), "lsblk shows no program"
    assert scene.ids() == ["a", "b", "c"] and scene.lvm.names() == before


def test_one_in_the_middle_that_was_replaced_keeps_all(scene: Scene) -> None:
    records = three(scene)
    consistency.delete(scene.host, [records[1]], Silent())
    take(scene, "b")
    before = scene.lvm.names()
    with pytest.raises(SnapshotReplaced):
        consistency.delete(scene.host, records, Silent())
    assert sorted(scene.ids()) == ["a", "b", "c"] and scene.lvm.names() == before


def test_one_of_a_domain_somebody_works_on_keeps_all(scene: Scene) -> None:
    records = three(scene)
    other = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")
    put_record(
        scene.host.settings.state_dir,
        busy := disks_only("x", domain="busy", domain_uuid=other, disks=()),
    )
    with scene.host.catalog.locked(other, "busy"), pytest.raises(Locked):
        consistency.delete(scene.host, [records[0], busy, records[2]], Silent())
    assert scene.ids() == ["a", "b", "c"]


def test_one_of_a_namesake_that_goes_too_frees_no_volume(scene: Scene) -> None:
    """Two domains of one name each have a record `b`; only that of the other one goes."""
    record = take(scene, "a")
    state_dir = scene.host.settings.state_dir
    put_record(state_dir, replace(record, id=SnapshotId("b"), set="0123456789ab"))
    namesake = DomainUuid("99999999-2222-3333-4444-555555555555")
    other = disks_only("b", domain=DOMAIN, domain_uuid=namesake, disks=())
    put_record(state_dir, other)
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match="demo@b needs it too"):
        consistency.delete(scene.host, [record, other], Silent())
    assert scene.lvm.names() == before and scene.host.catalog.has(namesake, "b")


def test_what_is_pending_is_finished_before_all_are_checked(scene: Scene) -> None:
    """A delete that was killed holds nothing up."""
    records = three(scene)
    gone = take(scene, "gone")
    scene.host.catalog.hide(gone)
    consistency.delete(scene.host, records, Silent())
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()
    assert len(scene.lvm.names()) == 4


@pytest.mark.parametrize(
    ("failing", "status", "untouched"),
    [("refused", ExitStatus.FAILED, ("b", "c")), ("half", ExitStatus.REPAIR_NEEDED, ("c",))],
)
def test_what_fails_when_one_is_gone_says_which(
    scene: Scene, failing: str, status: ExitStatus, untouched: tuple[str, ...]
) -> None:
    """Somebody opens the second, or LVM hangs at it, while the first is removed."""
    records = three(scene)
    removals = 0

    def strike(argv: tuple[str, ...]) -> None:
        nonlocal removals
        if argv[1] != "lvremove":
            return
        removals += 1
        if failing == "refused":
            open_one(scene, records[1])
        elif removals > 2:
            raise CommandTimedOut(argv=argv, seconds=300)

    scene.lvm.before = strike
    with pytest.raises(SnapvmError) as caught:
        consistency.delete(scene.host, records, Silent())
    stopped = caught.value
    assert isinstance(stopped, DeleteStopped) and stopped.exit_status is status
    refs = tuple(f"{DOMAIN}@{name}" for name in untouched)
    assert stopped.deleted == ("demo@a",) and stopped.untouched == refs
    assert stopped.message().endswith(f"; deleted demo@a, not touched {', '.join(refs)}")
    assert stopped.hint() and stopped.hint() == stopped.because.hint()
    assert tuple(f"{DOMAIN}@{id_}" for id_ in scene.ids()) == refs


def test_one_of_many_does_not_read_all_the_others_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To delete 400 of 800 took one and a half minutes, most of it for reading records."""
    many = [disks_only(f"s{n}", domain_uuid=UUID, disks=()) for n in range(40)]
    for record in many:
        put_record(scene.host.settings.state_dir, record)
    load, loaded = recordfile.load, []

    def counting(text: bytes, path: str) -> Record:
        loaded.append(path)
        return load(text, path)

    monkeypatch.setattr(recordfile, "load", counting)
    consistency.delete(scene.host, many[:20], Silent())
    assert len(scene.ids()) == 20
    assert len(loaded) < 4 * len(many) + 20


def in_use(scene: Scene, record: Record) -> None:
    """Have somebody read a snapshot, as a backup does for hours."""
    for disk in record.disks:
        scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv).opened = True


def built_upon(scene: Scene, record: Record) -> None:
    """Have a thin volume of another pool read from a snapshot."""
    snapshot = record.disks[0].snapshot
    above = scene.lvm.add_disk(snapshot.vg, "above", pool="other")
    above.origin = snapshot.lv


@pytest.mark.parametrize("harm", [in_use, built_upon])
def test_a_prune_leaves_out_what_somebody_needs_and_goes_on(
    scene: Scene, harm: Callable[[Scene, Record], None]
) -> None:
    """A pool would run full when a domain always has one that a backup reads at night."""
    records = [take(scene, name) for name in "abc"]
    harm(scene, records[1])
    with pytest.raises(DeleteStopped) as stopped:
        consistency.prune(scene.host, [records], Silent())
    assert stopped.value.exit_status is ExitStatus.FAILED
    assert stopped.value.deleted == ("demo@a", "demo@c")
    assert stopped.value.untouched == ("demo@b",)
    assert isinstance(stopped.value.because, VolumeRefused)
    assert scene.ids() == ["b"]
    with pytest.raises(VolumeRefused):
        consistency.prune(scene.host, [records[1:2]], Silent())
    assert scene.ids() == ["b"]
