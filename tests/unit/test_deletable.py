"""What may be deleted, and what of it when there is no room left."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency
from snapvm.errors import ExitStatus
from snapvm.failures import CaptureFailed, DeleteStopped, SnapshotFailed
from snapvm.model import DomainState, Record, Silent
from snapvm.process import Completed
from snapvm.refusals import SnapshotReplaced, VolumeRefused
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import (
    begun,
    die,
    fail_command,
    fail_deed,
    mend,
    revive,
    roll_back,
    take,
    take_half,
)


@pytest.mark.parametrize(
    "said",
    [
        "/etc/lvm/archive/.lvm_host_1_2: fclose failed: No space left on device",
        "Couldn't create temporary archive name.",
        "Cannot archive volume group metadata for vg0 to read-only filesystem.",
    ],
    ids=["no room", "no inode", "read-only"],
)
@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_a_delete_makes_room_where_lvm_has_none_for_its_own_files(
    tmp_path: Path, thick: tuple[str, ...], said: str
) -> None:
    """Memory images have filled the file system on which LVM archives its metadata.

    That no file can be made there LVM tells without the reason (lvm2, create_temp_name).
    """
    scene = make_scene(tmp_path, thick=thick)
    scene.lvm.says_without_room = said
    names = scene.lvm.names()
    record = take(scene, "x")
    scene.lvm.has_no_room = True
    consistency.delete(scene.host, [record], Silent())
    assert scene.lvm.names() == names and scene.ids() == []
    assert not list(scene.host.settings.state_dir.rglob("*memory*"))


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_a_take_that_fails_for_want_of_room_leaves_nothing(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    scene = make_scene(tmp_path, thick=thick)
    names = scene.lvm.names()

    def fill(deed: str) -> None:
        scene.lvm.has_no_room = scene.lvm.has_no_room or deed == "window"

    scene.hypervisor.before = fill
    fail_command(scene, 2, after=True)
    with pytest.raises(SnapshotFailed):
        take(scene, "x")
    assert scene.lvm.names() == names and scene.host.catalog.leftovers(UUID) == ()


THICK = pytest.mark.parametrize("thick", [(), ("vg1",)], ids=["thin", "mixed"])


@THICK
def test_a_rollback_needs_no_room_for_the_names_of_the_disks(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """Another domain's image filled it meanwhile: the disks were left without their names."""
    scene, record = begun(tmp_path, *thick)
    names = scene.lvm.names()

    def fill(argv: tuple[str, ...]) -> None:
        scene.lvm.has_no_room = scene.lvm.has_no_room or argv[1] == "lvrename"

    scene.lvm.before = fill
    fail_deed(scene, "stop")
    with pytest.raises(CaptureFailed):
        roll_back(scene, record)
    assert scene.lvm.names() == names and scene.disk_data() == ["8", "8"]
    assert scene.host.catalog.leftovers(UUID) == ()
    revive(scene)
    scene.lvm.has_no_room = False
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


@THICK
def test_a_delete_after_a_rollback_that_was_killed_needs_no_room(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """It finishes that first, and so could never make room."""
    scene, record = begun(tmp_path, *thick)
    other = take(scene, "y")
    die(scene, record, "restore")
    scene.lvm.has_no_room = True
    consistency.delete(scene.host, [other], Silent())
    assert scene.disk_data() == ["5", "5"] and scene.ids()[0] == "x"
    assert "y" not in scene.ids() and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("has_room", [True, False])
def test_lvm_may_take_long_to_discard_what_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    """With issue_discards=1: each delete ended with status 7, a prune of a domain after one."""
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    records = [take(scene, "x"), take(scene, "y")]
    run = scene.lvm.run

    def discarding(argv: Sequence[str], *, timeout_seconds: float, kill: bool = True) -> Completed:
        scene.lvm.busy_seconds = 1800 if argv[1] == "lvremove" else 0
        return run(argv, timeout_seconds=timeout_seconds, kill=kill)

    monkeypatch.setattr(scene.lvm, "run", discarding)
    scene.lvm.has_no_room = not has_room
    assert consistency.prune(scene.host, [records], Silent()) == tuple(records)
    assert scene.ids() == []


@pytest.mark.parametrize("of_rollback", [False, True], ids=["take", "rollback"])
def test_lvm_may_take_long_to_discard_what_a_killed_command_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_rollback: bool
) -> None:
    """The store of a thick snapshot is as large as its disk; each repair ended with status 7."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    names = scene.lvm.names()
    if of_rollback:
        die(scene, record, "freeze")
    else:
        take_half(scene, "half")
    run = scene.lvm.run

    def discarding(argv: Sequence[str], *, timeout_seconds: float, kill: bool = True) -> Completed:
        scene.lvm.busy_seconds = 1800 if argv[1] == "lvremove" else 0
        return run(argv, timeout_seconds=timeout_seconds, kill=kill)

    monkeypatch.setattr(scene.lvm, "run", discarding)
    mend(scene)
    assert scene.lvm.names() == names and scene.host.catalog.leftovers(UUID) == ()


def test_what_has_snapshots_of_its_own_is_not_deleted_below_them(tmp_path: Path) -> None:
    """LVM would remove them with it."""
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    volume = record.disks[0].snapshot
    theirs = scene.lvm.add_disk(volume.vg, "theirs", pool="")
    theirs.origin, theirs.origin_bytes = volume.lv, 1 << 26
    with pytest.raises(VolumeRefused, match=r"vg0/theirs.*need"):
        consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == ["x"]


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
@pytest.mark.parametrize("how", ["moving", "merging"])
def test_what_lvm_does_not_remove_now_is_not_begun_to_delete(
    tmp_path: Path, how: str, thick: tuple[str, ...]
) -> None:
    """LVM moves it for hours, or merges it at the next start: each command on the domain ended."""
    scene = make_scene(tmp_path, thick=thick)
    records = [take(scene, "x"), take(scene, "y")]
    held = records[0].disks[1].snapshot
    setattr(scene.lvm.named(held.vg, held.lv), how, True)
    with pytest.raises(VolumeRefused, match=held.lv) as told:
        consistency.delete(scene.host, [records[0]], Silent())
    assert told.value.hint().startswith("wait until")
    with pytest.raises(DeleteStopped) as stopped:
        consistency.prune(scene.host, [records], Silent())
    assert stopped.value.deleted == ("demo@y",) and scene.ids() == ["x"]
    assert stopped.value.exit_status is ExitStatus.FAILED
    setattr(scene.lvm.named(held.vg, held.lv), how, False)
    consistency.delete(scene.host, [records[0]], Silent())
    assert scene.ids() == []


def test_what_is_in_one_of_two_groups_of_a_name_is_not_begun_to_delete(tmp_path: Path) -> None:
    """LVM takes no command on either; the records were gone, their volumes and status 7 stayed."""
    scene = make_scene(tmp_path)
    records = [take(scene, "x"), take(scene, "y")]
    theirs = scene.lvm.add_disk("vg1", "root", pool="")
    theirs.namesake = "guests-uuid"
    with pytest.raises(VolumeRefused, match="2 volume groups named vg1") as refused:
        consistency.delete(scene.host, [records[0]], Silent())
    assert "vgrename guests-uuid" in refused.value.hint()
    with pytest.raises(VolumeRefused):
        consistency.prune(scene.host, [records], Silent())
    assert sorted(scene.ids()) == ["x", "y"] and scene.host.catalog.leftovers(UUID) == ()
    theirs.vg = "guest"
    consistency.delete(scene.host, records, Silent())
    assert scene.ids() == []


def test_what_another_record_names_is_not_deleted(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    scene.host.catalog.put(replace(record, id="copy", memory=None), tmp_path / "none")  # type: ignore[arg-type]
    with pytest.raises(VolumeRefused, match="demo@copy"):
        consistency.delete(scene.host, [record], Silent())
    assert sorted(scene.ids()) == ["copy", "x"]
    both = [scene.host.catalog.get(record.domain_uuid, id_) for id_ in scene.ids()]  # type: ignore[arg-type]
    consistency.delete(scene.host, both, Silent())
    assert scene.ids() == []


def test_a_volume_that_is_a_disk_again_is_not_deleted(tmp_path: Path) -> None:
    """Somebody gave a former disk its name back by hand; nothing has it open."""
    scene = make_scene(tmp_path, state=DomainState.SHUTOFF)
    record = take(scene, "x")
    undo = roll_back(scene, record).undo
    former = undo.disks[0].snapshot
    scene.lvm.named("vg0", "demo-d0").name = "aside"
    scene.lvm.named(former.vg, former.lv).name = "demo-d0"
    with pytest.raises(VolumeRefused, match="vg0/demo-d0"):
        consistency.delete(scene.host, [undo], Silent())
    assert undo.id in scene.ids()


def take_into_use(scene: Scene, record: Record) -> FakeVolume:
    """Make a disk of a snapshot by hand, for a domain that is off."""
    kept = record.disks[0].snapshot
    volume = scene.lvm.named(kept.vg, kept.lv)
    volume.name, volume.writable, volume.data = "other-d0", True, "precious"
    return volume


def test_a_snapshot_that_somebody_made_a_disk_of_is_not_deleted(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    theirs = take_into_use(scene, record)
    with pytest.raises(VolumeRefused, match="vg0/other-d0") as refused:
        consistency.delete(scene.host, [record], Silent())
    with pytest.raises(VolumeRefused):
        consistency.prune(scene.host, [[record]], Silent())
    assert scene.ids() == ["x"] and theirs in scene.lvm.volumes
    command = refused.value.hint().partition("tags from it: ")[2].partition(";")[0]
    scene.lvm.obey(("lvm", *shlex.split(command)))
    consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [] and theirs in scene.lvm.volumes
    assert "vg1/demo-d1.x" not in scene.lvm.names()


def test_a_snapshot_that_is_a_disk_by_now_is_no_orphan_when_its_record_is_lost(
    tmp_path: Path,
) -> None:
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    take(scene, "y")
    theirs = take_into_use(scene, record)
    shutil.rmtree(scene.host.catalog.path(record, ""))
    found = {f.subject: f for f in checking.look(scene.host, None, Silent(), deep=False)}
    assert found["vg1/demo-d1.x"].orphan is not None
    told = found["vg0/other-d0"]
    assert told.orphan is None and "writable" in told.problem
    command = told.remedy.partition("tags from it: ")[2].partition(";")[0]
    scene.lvm.obey(("lvm", *shlex.split(command)))
    assert not theirs.tags


def test_a_prune_passes_over_one_that_another_has_deleted(scene: Scene) -> None:
    records = [take(scene, name) for name in "abc"]
    consistency.delete(scene.host, records[1:2], Silent())
    assert consistency.prune(scene.host, [records], Silent()) == (records[0], records[2])
    assert scene.ids() == []


def test_all_are_looked_at_by_who_chose_them_before_the_first_goes(scene: Scene) -> None:
    """As `latest`, which is another one by now: `delete a latest` must not delete a alone."""
    records = [take(scene, name) for name in "ab"]

    def require_meant(record: Record) -> None:
        if record.id == "b":
            raise SnapshotReplaced(domain=DOMAIN, id=record.id)

    with pytest.raises(SnapshotReplaced):
        consistency.delete(scene.host, records, Silent(), require_meant=require_meant)
    assert scene.ids() == ["a", "b"]
