"""What a hint has an administrator do is done: it is not refused in its turn, and leads out."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import consistency, naming, repair, takingback
from snapvm.attention import HalfBack, JournalUnusable, LeftBehind, StuckPaused
from snapvm.failures import CommandFailed, SnapshotFailed, StorageFailed, saying
from snapvm.model import DomainState, Record, Silent, SnapshotId
from snapvm.recordfolder import Work
from snapvm.refusals import DomainRefused, RecordDamaged, RecordUnusable, VolumeRefused
from tests.fakes import mortal
from tests.fakes.records import put_record
from tests.fakes.scene import UUID, Scene, make_scene
from tests.unit.deeds import begun, delete, fail_command, mend, revive, roll_back, take


def named_in(command: str, scene: Scene) -> list[Record]:
    """Return the records that a command names as DOM@ID."""
    ids = [word.rpartition("@")[2] for word in shlex.split(command) if "@" in word]
    return [scene.host.catalog.get(UUID, SnapshotId(id_)) for id_ in ids]


def test_two_that_need_one_volume_go_together(scene: Scene) -> None:
    """The hint was to delete the other one, which was refused with the hint to delete the first."""
    record = take(scene, "a")
    put_record(
        scene.host.settings.state_dir,
        replace(record, id=SnapshotId("b"), set="0123456789ab"),
    )
    with pytest.raises(VolumeRefused, match="demo@b needs it too") as told:
        delete(scene, record)
    command = told.value.hint().partition(": ")[2]
    assert command == "snapvm delete demo@a demo@b"
    consistency.delete(scene.host, named_in(command, scene), Silent())
    assert scene.ids() == []


@pytest.mark.parametrize("point", ["after stop 1", "after copy back 1"])
def test_a_rollback_whose_journal_is_damaged_is_not_to_be_started(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said to make sure that the domain runs: on disks of which some had gone back."""
    scene, record = begun(tmp_path, "vg1")
    assert mortal.kill_at(scene, lambda it: roll_back(it, record), point)
    (left,) = scene.host.catalog.leftovers(UUID)
    assert left.work is Work.ROLLBACK
    left.path.write_text("{")
    with pytest.raises(JournalUnusable) as told:
        mend(scene)
    hint = told.value.hint()
    assert "do not start it" in hint and "that the domain runs" not in hint
    assert f"({left.path})" in hint
    left.path.rename(tmp_path / "damaged")
    monkeypatch.setattr(naming, "stamp", lambda _now: "20301122T201755Z")  # not in this second
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and scene.machine.count == 5


def test_the_parts_of_a_damaged_journal_are_no_reason_to_start_it_either(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg1")
    assert mortal.kill_at(scene, lambda it: roll_back(it, record), "after stop 1")
    (left,) = scene.host.catalog.leftovers(UUID)
    scene.host.catalog.write_journal(UUID, Work.ROLLBACK, {**left.intent, "disks": [5]})
    with pytest.raises(LeftBehind) as told:
        mend(scene)
    assert "do not start it" in told.value.hint()


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_a_domain_that_is_off_is_not_said_to_run_on(tmp_path: Path, state: DomainState) -> None:
    scene = make_scene(tmp_path, state=state, thick=("vg0", "vg1"))
    fail_command(scene, 1, after=False)
    with pytest.raises(SnapshotFailed) as told:
        take(scene)
    assert "the domain is as it was" in told.value.hint()
    assert "runs on" not in told.value.hint()


def test_a_name_that_begins_with_a_hyphen_is_repaired(tmp_path: Path) -> None:
    scene, _ = begun(tmp_path)
    (scene.host.catalog.folder(UUID, SnapshotId("y")).with_name(".y.draft")).mkdir()
    with pytest.raises(DomainRefused) as told:
        repair.require_none_pending(scene.host, [UUID], "-x")
    assert told.value.hint() == "snapvm repair -- -x"


def test_a_name_that_is_taken_in_a_rollback_has_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said to choose another --name, which `rollback` does not have."""
    scene, record = begun(tmp_path)
    monkeypatch.setattr(naming, "stamp", lambda _now: "20301122T201755Z")
    scene.lvm.add_disk("vg0", "demo-d0.undo-20301122T201755Z")
    with pytest.raises(VolumeRefused, match="exists already") as told:
        roll_back(scene, record)
    assert told.value.hint().startswith("try again") and "--name" not in told.value.hint()
    scene.lvm.add_disk("vg0", "demo-d0.y")
    with pytest.raises(VolumeRefused, match="exists already") as told:
        take(scene, "y")
    assert told.value.hint().startswith("choose another --name")


def test_a_disk_that_has_shrunk_is_extended_while_it_is_not_active(tmp_path: Path) -> None:
    """LVM: Snapshot origin volumes can be resized only while inactive."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    scene.lvm.named("vg0", "demo-d0").size_bytes -= 4 << 20
    with pytest.raises(VolumeRefused, match="has become smaller") as told:
        roll_back(scene, record)
    steps = [each.split()[0] for each in told.value.hint().partition(": ")[2].split("; ")]
    assert steps == ["lvchange", "lvextend", "lvchange"]


def test_the_journal_of_a_rollback_that_is_lost_is_named(tmp_path: Path) -> None:
    """It was `.rollback.json`, of which each domain may have one."""
    scene, record = begun(tmp_path)
    assert mortal.kill_at(scene, lambda it: roll_back(it, record), "after stop 1")
    (left,) = scene.host.catalog.leftovers(UUID)
    for volume in [each for each in scene.lvm.volumes if each.vg == "vg1"]:
        scene.lvm.volumes.remove(volume)
    with pytest.raises(HalfBack, match="LVM does not report vg1/demo-d1") as told:
        mend(scene)
    assert f"move its journal {left.path} out of the state folder" in told.value.hint()


def test_tags_that_stay_say_what_corrects_them(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(argv: tuple[str, ...]) -> None:
        if "--deltag" in argv:
            raise CommandFailed(argv=argv, status=5, stderr="no")

    scene.lvm.before = fail
    record = take(scene, "a")
    assert "which `snapvm repair` corrects" in caplog.text
    revive(scene)
    done = consistency.repair_all(scene.host, None, Silent())
    assert done == (f"corrected the tags of {record.ref}",)


def test_what_became_of_the_work_is_told_where_no_path_is() -> None:
    with (
        pytest.raises(StorageFailed) as told,
        saying("nothing was kept"),
    ):
        raise StorageFailed(path="vg0/x", why="it cannot be read")
    assert told.value.hint() == "nothing was kept"


def test_a_rollback_that_has_begun_is_not_left_for_another_snapshot() -> None:
    """It said: do not start it; other snapshots are not affected, then: snapvm repair."""
    gone = RecordUnusable(path="/state/nvram.x", why="it has changed", is_of_part=True)
    assert takingback.way_on(gone).startswith("bring back what cannot be used")
    damaged = RecordDamaged(path="/state/x/snapshot.json", why="it is not JSON")
    assert "catalog rebuild" in takingback.way_on(damaged)
    assert takingback.way_on(CommandFailed(argv=("lvm",), status=5, stderr="")) == "fix the cause"


def test_a_stuck_domain_of_any_name_is_let_run() -> None:
    assert StuckPaused(domain="my vm", why="").hint() == "`virsh resume 'my vm'` makes it run"
    stuck = StuckPaused(domain="-x", why="", command="snapvm repair")
    assert stuck.hint() == "`snapvm repair -- -x` makes it run"
