"""A rollback is killed, its owner has the domain run and shuts it off, and then comes a repair."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import durable
from snapvm.attention import LeftBehind, LeftOff
from snapvm.failures import CommandFailed, DomainFailed
from snapvm.lvm import device
from snapvm.model import DomainState, Record, SideKind, SidePlace
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import begun, hang, mend, revive, roll_back, take_at_five, use

BOTH = ("vg0", "vg1")


def killed(folder: Path, point: str, *thick: str) -> tuple[Scene, Record]:
    scene, record = begun(folder, *thick)
    assert mortal.kill_at(scene, lambda dying: roll_back(dying, record), point)
    return scene, record


def assert_taken_back(scene: Scene, *data: str) -> None:
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == list(data)
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID) == ()
    assert len(scene.lvm.names()) == 6


@pytest.mark.parametrize("thick", [(), ("vg1",), BOTH], ids=["thin", "mixed", "thick"])
@pytest.mark.parametrize("point", ["before restore 1", "after restore 1"])
def test_memory_does_not_meet_what_was_written_since(
    tmp_path: Path, point: str, thick: tuple[str, ...]
) -> None:
    scene, record = killed(tmp_path, point, *thick)
    use(scene)
    with pytest.raises(LeftOff, match="something has written to its disks") as told:
        mend(scene)
    assert "snapvm rollback demo@x" in told.value.hint()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == ["7", "7"]
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()
    mend(scene)
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_one_without_memory_stays_as_its_owner_left_it(tmp_path: Path) -> None:
    """It is off because he shut it off; and its variables are those of his run, nowhere else."""
    scene = make_scene(tmp_path)
    nvram = SidePlace(kind=SideKind.NVRAM, path=tmp_path / "demo_VARS.fd")
    scene.machine.places = (nvram,)
    record = take_at_five(scene, with_memory=False)
    assert mortal.kill_at(scene, lambda dying: roll_back(dying, record), "after stop 1")
    use(scene)
    with pytest.raises(LeftOff):
        mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == ["7", "7"] and nvram.path.read_text() == "7"
    mend(scene)
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


def test_memory_does_not_meet_what_was_written_to_clones_before_any_journal_told(
    tmp_path: Path,
) -> None:
    """Its owner ends the standing domain and starts it: on the clones, whose names are the disks'.

    It died before it wrote down that it ends the domain; its clones hold what is newest.
    """
    scene, _ = killed(tmp_path, "after lvm lvrename 4")
    scene.hypervisor.stop(scene.machine.domain)
    use(scene)
    with pytest.raises(LeftOff):
        mend(scene)
    assert scene.disk_data() == ["7", "7"] and len(scene.ids()) == 2


@pytest.mark.parametrize("thick", [("vg1",), BOTH], ids=["mixed", "thick"])
@pytest.mark.parametrize("point", ["before write .rollback.json 2", "before stop 1"])
def test_a_thick_disk_that_was_let_change_is_not_written_over(
    tmp_path: Path, point: str, thick: tuple[str, ...]
) -> None:
    """What keeps its present was made before, and has none of it."""
    scene, _ = killed(tmp_path, point, *thick)
    use(scene)
    mend(scene)
    assert_taken_back(scene, "10", "10")


def test_one_that_died_before_it_ends_the_domain_never_does(tmp_path: Path) -> None:
    scene, _ = killed(tmp_path, "after lvm lvrename 4")
    use(scene)
    mend(scene)
    assert_taken_back(scene, "10", "10")


def test_one_that_died_when_it_had_ended_the_domain_goes_on(tmp_path: Path) -> None:
    for thick in ((), ("vg1",), BOTH):
        scene, _ = killed(tmp_path / "-".join(("of", *thick)), "after stop 1", *thick)
        mend(scene)
        assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_clones_that_were_spoiled_unseen_are_made_anew(tmp_path: Path) -> None:
    """It ran on a clone and on a thick disk that was not back yet, and is off again."""
    for point in ("after stop 1", "before copy back 1"):
        scene, _ = killed(tmp_path / point.replace(" ", "-"), point, "vg1")
        use(scene)
        mend(scene)
        assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_repair_that_let_the_domain_run_has_decided(tmp_path: Path) -> None:
    """LVM fails it, as it may a guard; the domain that is off by the next one was not ended."""
    scene, _ = killed(tmp_path, "before stop 1")

    hang(scene, "lvs")
    with pytest.raises(LeftBehind):
        mend(scene)
    revive(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    use(scene)
    mend(scene)
    assert_taken_back(scene, "10", "10")


def test_one_that_a_repair_found_running_is_not_restored_by_the_next(tmp_path: Path) -> None:
    """It was started afresh on the clones; the bookkeeping fails, and its owner pulls the plug."""
    scene, _ = killed(tmp_path, "after write .rollback.json 3")
    scene.hypervisor.start(scene.machine.domain, paused=False)
    scene.count(2)
    hang(scene, "lvchange")
    with pytest.raises(LeftBehind):
        mend(scene)
    revive(scene)
    scene.hypervisor.stop(scene.machine.domain)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == ["7", "7"] and len(scene.ids()) == 2


def test_one_that_runs_is_not_called_off_because_a_journal_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """'Do not start it', and status 8, would be said of a domain that its owner has started."""
    scene, _ = killed(tmp_path, "after write .rollback.json 3")
    scene.hypervisor.start(scene.machine.domain, paused=False)
    write = durable.write

    def full(path: Path, data: bytes) -> None:
        if path.name == ".rollback.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch, pytest.raises(LeftBehind, match="No space left"):
        patch.setattr(durable, "write", full)
        mend(scene)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


def test_a_rollback_that_fails_in_the_end_has_decided_too(tmp_path: Path) -> None:
    """The domain does not end, and the names cannot be put back: it runs on, and is shut off."""
    scene, record = begun(tmp_path)

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] in ("lvrename", "lvremove"):
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    def before(deed: str) -> None:
        if deed == "stop":
            scene.lvm.before = fail
            raise DomainFailed(domain=DOMAIN, deed="ended", why="a test wants it")

    scene.hypervisor.before = before
    with pytest.raises(LeftBehind):
        roll_back(scene, record)
    revive(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    use(scene)
    mend(scene)
    assert_taken_back(scene, "10", "10")


def test_the_kernel_tells_how_much_was_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_text("")
    entry = tmp_path / "0:0"
    entry.mkdir()
    (entry / "stat").write_text("  9 0 72 1 5 0 40 2 0 3 3 2 0 16 0 7 1\n")
    assert device.written_sectors(path, tmp_path) == 56
    assert device.written_sectors((0, 0), tmp_path) == 56
    (entry / "stat").write_text("9 0 72 1 5 0 40 2 0 3 3\n")
    assert device.written_sectors(path, tmp_path) == 40, "a kernel that counts no discards"
    (entry / "stat").write_text("")
    assert device.written_sectors(path, tmp_path) is None
    assert device.written_sectors(tmp_path / "none", tmp_path) is None
