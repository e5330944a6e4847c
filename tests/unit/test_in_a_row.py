"""One mishap after another: what the second must not make of what the first has left."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from snapvm import consistency, durable, hostid
from snapvm.askedfor import Asked
from snapvm.attention import LeftOff
from snapvm.cli import lookup
from snapvm.errors import ExitStatus, NothingToUndo, SnapvmError
from snapvm.failures import StorageFailed
from snapvm.model import DomainState, Record, SideKind, SidePlace, Silent
from snapvm.refusals import UndoUnclear
from tests.fakes import meanwhile, mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.fakes.storage import failing
from tests.unit.deeds import begun, delete, mend, roll_back, take, take_at_five


def kill_rollback(scene: Scene, record: Record, point: str) -> None:
    assert mortal.kill_at(scene, lambda dying: roll_back(dying, record), point)


def test_an_owners_pause_outlives_a_rollback_that_was_killed(scene: Scene) -> None:
    """He ended the domain and started it anew, to stand still; `repair` let it run."""
    record = take(scene)
    kill_rollback(scene, record, "before suspend 1")
    meanwhile.hold(scene)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.host.catalog.leftovers(UUID) == ()


def test_clones_that_were_being_made_anew_are_told_from_former_disks_after_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Former disks had their names by then, and became what an undo keeps: without names."""
    scene, record = begun(tmp_path, "vg1")
    monkeypatch.setattr(hostid, "BOOT_PATH", meanwhile.first_boot(scene))
    kill_rollback(scene, record, "after stop 1")
    meanwhile.use(scene)
    assert mortal.kill_at(scene, mend, "after lvm lvrename 2")
    assert scene.disk_data()[0] == "8", "the former disk has its name"
    meanwhile.reboot(scene)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    assert scene.host.catalog.leftovers(UUID) == () and len(scene.ids()) == 2


@pytest.mark.parametrize("is_booted", [False, True])
@pytest.mark.parametrize("thick", [("vg1",), ("vg0", "vg1")], ids=["mixed", "thick"])
@pytest.mark.parametrize("point", ["before copy back 1", "after copy back 1"])
def test_what_a_repair_has_written_back_is_not_taken_for_its_owners(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    thick: tuple[str, ...],
    is_booted: bool,
) -> None:
    """It was "taken back": one disk was the snapshot's, and what had been current was removed."""
    scene, record = begun(tmp_path, *thick)
    monkeypatch.setattr(hostid, "BOOT_PATH", meanwhile.first_boot(scene))
    kill_rollback(scene, record, "after stop 1")
    assert mortal.kill_at(scene, mend, point)
    if is_booted:
        meanwhile.reboot(scene)
        with pytest.raises(LeftOff):
            mend(scene)
    else:
        mend(scene)
        assert scene.machine.count == 5
    assert scene.disk_data() == ["5", "5"]
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("point", ["before end .rollback.json 1", "before write snapshot.json 1"])
def test_a_domain_that_is_left_off_is_told_of_by_the_next_repair_too(
    tmp_path: Path, point: str
) -> None:
    """The clones were plain disks by then, and no repair ever came to its end."""
    scene, record = begun(tmp_path)
    kill_rollback(scene, record, "after stop 1")
    meanwhile.use(scene)
    assert mortal.kill_at(scene, mend, point)
    with pytest.raises(LeftOff):
        mend(scene)
    assert scene.disk_data() == ["7", "7"] and len(scene.ids()) == 2
    assert scene.host.catalog.leftovers(UUID) == ()
    mend(scene)


def make_with_variables(folder: Path) -> tuple[Scene, Record]:
    scene = make_scene(folder)
    path = folder / "demo_VARS.fd"
    scene.machine.places = (SidePlace(kind=SideKind.NVRAM, path=path),)
    return scene, take_at_five(scene)


@pytest.fixture
def with_variables(tmp_path: Path) -> tuple[Scene, Record]:
    return make_with_variables(tmp_path)


def files_left(scene: Scene) -> set[str]:
    folder = scene.host.settings.state_dir / "domains" / UUID
    return {path.name for path in folder.glob(".*")} - {".name"}


def test_variables_that_were_half_put_aside_go(with_variables: tuple[Scene, Record]) -> None:
    """They stayed in the state folder for good: nothing named them."""
    scene, record = with_variables
    kill_rollback(scene, record, "after write nvram.demo_VARS.fd 1")
    assert any("aside" in name for name in files_left(scene))
    mend(scene)
    assert files_left(scene) == set()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def without_room(folder: Path, number: int) -> str:
    """Roll back with no room for the n-th thing; return how that ends, and "over" at the last."""
    folder.mkdir()
    scene, record = make_with_variables(folder)
    before = scene.lvm.names()
    with failing(scene.host.settings.state_dir, number, errno.ENOSPC, lasts=False) as seen:
        try:
            roll_back(scene, record)
        except StorageFailed:
            assert files_left(scene) == set() and scene.lvm.names() == before
            return "as before"
        except SnapvmError as error:
            assert error.exit_status in (ExitStatus.REPAIR_NEEDED, ExitStatus.ATTENTION)
            mend(scene)
            assert files_left(scene) == set() and scene.disk_data() == ["5", "5"]
            return "by repair"
        return "all the same" if seen() >= number else "over"


def test_what_had_no_room_leaves_no_half_of_it(tmp_path: Path) -> None:
    ends = [without_room(tmp_path / str(number), number) for number in range(1, 60)]
    assert set(ends) == {"as before", "by repair", "all the same", "over"}, ends


def test_what_a_dead_one_has_renamed_is_on_the_disk_before_more_is_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut showed a snapshot again that was being deleted, and its volumes were gone."""
    record = take(scene)
    sync_folder = durable.sync_folder

    def dying(scene: Scene, die: Callable[[], None]) -> None:
        def sync_or_die(folder: Path) -> None:
            if list(folder.glob(".*.gone")):
                die()
            sync_folder(folder)

        monkeypatch.setattr(durable, "sync_folder", sync_or_die)
        delete(scene, record)

    assert mortal.kill(scene, dying) and scene.ids() == []
    synced: list[str] = []

    def sync(folder: Path) -> None:
        synced.append(folder.name)
        sync_folder(folder)

    def removing(argv: tuple[str, ...]) -> None:
        assert argv[1] != "lvremove" or synced == [UUID]

    monkeypatch.setattr(durable, "sync_folder", sync)
    scene.lvm.before = removing
    mend(scene)
    assert scene.ids() == [] and synced


@pytest.mark.parametrize("point", ["before suspend 1", "before restore 1"])
def test_undo_does_not_go_further_back_than_it_was_asked_to(scene: Scene, point: str) -> None:
    """What the rollback kept that was killed was not there yet to be chosen: an older one was."""
    record = take(scene)
    scene.count(1)
    chosen = roll_back(scene, record).undo
    scene.count(2)
    kill_rollback(scene, record, point)
    with pytest.raises(UndoUnclear) as refused:
        undo(scene, chosen)
    assert "snapvm undo demo" in refused.value.hint()
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    if point == "before suspend 1":
        undo(scene, chosen)
        assert scene.disk_data() == ["1", "1"]
    else:
        with pytest.raises(UndoUnclear):
            undo(scene, chosen)


def test_what_a_rollback_keeps_is_not_said_to_be_taken_back(scene: Scene) -> None:
    """It died when it wrote the record of that, which is written again."""
    record = take(scene, "x")
    kill_rollback(scene, record, "before commit 1")
    said = consistency.repair_all(scene.host, None, Silent())
    assert said == ("finished the rollback of demo to x",)
    assert len(scene.ids()) == 2


def test_one_that_has_nothing_to_undo_yet_is_told_why(scene: Scene) -> None:
    """It was told of snapshots of kind undo, of which there are none."""
    record = take(scene)
    kill_rollback(scene, record, "after stop 1")
    with pytest.raises(NothingToUndo) as told:
        lookup.newest_undo(scene.host.catalog, DOMAIN)
    assert "a rollback of it is unfinished: `snapvm repair demo`" in told.value.hint()


def undo(scene: Scene, record: Record) -> None:
    asked = Asked(undoes=True)
    consistency.rollback(scene.host, record, paused=False, progress=Silent(), asked=asked)


def test_who_is_asked_first_is_asked_of_disks_that_are_mended(tmp_path: Path) -> None:
    """The plan that is shown before the yes was refused: a disk had no name just then."""
    scene, record = begun(tmp_path)
    kill_rollback(scene, record, "after lvm lvrename 1")
    plan = consistency.plan_rollback(scene.host, record, Silent())
    assert len(plan.disks) == 2
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_boot_in_a_rollback_of_a_domain_that_starts_by_itself_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be finished, and the memory of the snapshot was never restored."""
    scene, record = begun(tmp_path)
    monkeypatch.setattr(hostid, "BOOT_PATH", meanwhile.first_boot(scene))
    kill_rollback(scene, record, "before restore 1")
    meanwhile.reboot_and_start(scene)
    (said,) = consistency.repair_all(scene.host, None, Silent())
    assert said.endswith("the host was rebooted meanwhile, and the domain started afresh")
