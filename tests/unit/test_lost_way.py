"""The way of a rollback is lost: a snapshot overflows, a group goes, a device is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snapvm import checking, retry, sidefiles
from snapvm.attention import GivenBack, HalfBack, LeftBehind
from snapvm.errors import SnapvmError
from snapvm.failures import CaptureFailed, DomainFailed, RollbackFailed, StorageFailed
from snapvm.model import Domain, DomainState, SideKind, SidePlace, Silent, SnapshotId
from tests.fakes.lvm import UNSEEN
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, die, lose, mend, roll_back, take

THICK = [("vg0", "vg1"), ("vg1",), ("vg0",)]
KINDS = ["thick", "mixed", "mixed, the other way"]


def assert_as_before(scene: Scene, names: set[str], state: DomainState) -> None:
    assert scene.hypervisor.state_of(DOMAIN) is state
    assert scene.disk_data() == ["8", "8"]
    assert scene.lvm.names() == names and scene.ids() == ["x"]
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("thick", THICK, ids=KINDS)
def test_a_snapshot_that_overflows_before_the_domain_is_ended(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """It keeps only so much, and the domain has written since the plan was made."""
    scene, record = begun(tmp_path, *thick)
    names = scene.lvm.names()

    def strike(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvconvert":
            lose(scene, record, thick[-1])

    scene.lvm.before = strike
    with pytest.raises(RollbackFailed, match="more has changed meanwhile than it can keep"):
        roll_back(scene, record)
    assert_as_before(scene, names, DomainState.RUNNING)
    assert scene.machine.count == 8


def test_a_rollback_that_would_overflow_another_snapshot_by_then_is_put_back(
    tmp_path: Path,
) -> None:
    scene, record = begun(tmp_path, "vg0", "vg1")
    other = take(scene, "y")
    names = scene.lvm.names()

    def strike(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvconvert":
            sibling = scene.lvm.named("vg0", other.disks[0].snapshot.lv)
            sibling.data_percent, sibling.size_bytes = 99.0, 1 << 24

    scene.lvm.before = strike
    with pytest.raises(RollbackFailed, match="may be written back"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.lvm.names() == names and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("is_removed", [False, True], ids=["given up", "removed"])
@pytest.mark.parametrize("thick", THICK, ids=KINDS)
def test_a_snapshot_lost_past_the_point_of_no_return(
    tmp_path: Path, thick: tuple[str, ...], is_removed: bool
) -> None:
    """The present is kept: that is what the domain, which is off, gets back."""
    scene, record = begun(tmp_path, *thick)
    names = scene.lvm.names()
    at = 0

    def strike(argv: tuple[str, ...]) -> None:
        nonlocal at
        at += argv[0] == "copy"
        if at == len(thick):  # all but the last have been written back
            volume = lose(scene, record, thick[-1])
            if is_removed:
                names.discard(f"{volume.vg}/{volume.name}")
                scene.lvm.volumes.remove(volume)
                raise CaptureFailed(domain=DOMAIN, why="its snapshot is gone")

    scene.lvm.before = strike
    with pytest.raises(HalfBack):
        roll_back(scene, record)
    scene.lvm.before = lambda _argv: None
    with pytest.raises(GivenBack) as told:
        mend(scene)
    assert "again what they were before" in str(told.value)
    assert_as_before(scene, names, DomainState.SHUTOFF)
    mend(scene)
    scene.hypervisor.start(scene.machine.domain, paused=False)
    assert scene.machine.count == 8


@pytest.mark.parametrize("thick", THICK, ids=KINDS)
def test_a_snapshot_that_cannot_be_read_any_more_can_be_given_up(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """Its disk is bad there: the kernel does not give it up for that, and no repair comes past."""
    scene, record = begun(tmp_path, *thick)
    names = scene.lvm.names()
    ref = next(disk.snapshot for disk in record.disks if disk.snapshot.vg == thick[-1])

    def strike(argv: tuple[str, ...]) -> None:
        if argv[:2] == ("copy", str(ref)):
            raise StorageFailed(path=str(ref.path), why="Input/output error")

    scene.lvm.before = strike
    with pytest.raises(HalfBack):
        roll_back(scene, record)
    with pytest.raises(HalfBack) as told:
        mend(scene)
    assert "to have the former disks put back (lvremove " in told.value.hint()
    assert str(ref) in told.value.hint() and told.value.hint().startswith("do not start it")
    scene.lvm.volumes.remove(scene.lvm.named(ref.vg, ref.lv))
    with pytest.raises(GivenBack):
        mend(scene)
    assert_as_before(scene, names - {str(ref)}, DomainState.SHUTOFF)


def rename_what_is_kept(scene: Scene) -> None:
    """As somebody does who tidies up before he has the rollback finished."""
    for volume in scene.lvm.volumes:
        if ".undo-" in volume.name:
            volume.name = f"theirs-{volume.vg}"


@pytest.mark.parametrize("where", ["stop", "vg", "restore"])
@pytest.mark.parametrize("thick", THICK, ids=KINDS)
def test_what_is_kept_is_found_by_whatever_name_it_has(
    tmp_path: Path, thick: tuple[str, ...], where: str
) -> None:
    scene, record = begun(tmp_path, *thick)
    die(scene, record, where)
    rename_what_is_kept(scene)
    mend(scene)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert checking.look(scene.host, None, Silent(), deep=False) == ()
    if where != "stop":
        assert scene.disk_data() == ["5", "5"]
        (undo,) = (each for each in scene.ids() if each != record.id)
        roll_back(scene, scene.host.catalog.get(UUID, SnapshotId(undo)))
    assert scene.disk_data() == ["8", "8"]


def test_the_present_is_given_back_from_whatever_name_it_has(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg0", "vg1")
    names = scene.lvm.names()
    die(scene, record, "vg1/")
    rename_what_is_kept(scene)
    lose(scene, record, "vg1")
    with pytest.raises(GivenBack):
        mend(scene)
    assert_as_before(scene, names, DomainState.SHUTOFF)


def test_when_what_it_was_is_lost_too_everything_stays(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg0", "vg1")
    die(scene, record, "vg1/")
    for volume in scene.lvm.volumes:
        volume.invalid = bool(volume.origin) and volume.vg == "vg1"
    volumes = {(v.name, v.uuid, v.data) for v in scene.lvm.volumes if v.vg == "vg1"}
    with pytest.raises(HalfBack, match="cannot be put back"):
        mend(scene)
    assert {(v.name, v.uuid, v.data) for v in scene.lvm.volumes if v.vg == "vg1"} == volumes
    assert scene.host.catalog.leftovers(UUID) != ()


def test_its_uefi_variables_go_back_with_its_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They had been put back when snapvm was killed, and nothing said so yet."""
    nvram = tmp_path / "nvram"
    nvram.mkdir()
    scene, _ = begun(tmp_path, "vg0", "vg1")
    place = SidePlace(kind=SideKind.NVRAM, path=nvram / "vars.fd")
    place.path.write_text("then")
    scene.machine.places = (place,)
    record = take(scene, "y")
    place.path.write_text("now")
    put_back = sidefiles.put_back

    def stop_after(*what: Any) -> None:
        put_back(*what)
        raise CaptureFailed(domain=DOMAIN, why="killed here")

    with monkeypatch.context() as patched, pytest.raises(HalfBack):
        patched.setattr("snapvm.sidefiles.put_back", stop_after)
        roll_back(scene, record)
    assert place.path.read_text() == "then"
    lose(scene, record, "vg1")
    with pytest.raises(GivenBack):
        mend(scene)
    assert place.path.read_text() == "now"
    assert not list(scene.host.settings.state_dir.rglob("*.aside"))


@pytest.mark.parametrize("where", ["lvrename vg1 demo-d1", "stop"])
@pytest.mark.parametrize("away", ["vg0", "vg1"])
def test_a_group_that_is_away_when_a_killed_rollback_is_looked_after(
    tmp_path: Path, where: str, away: str
) -> None:
    """Ended as if all were well, the domain had disks of two times when the group came back."""
    scene, record = begun(tmp_path)
    names = scene.lvm.names()
    die(scene, record, where)
    everything = list(scene.lvm.volumes)
    before = {(v.vg, v.name, v.uuid) for v in everything}
    scene.lvm.volumes = [volume for volume in everything if volume.vg != away]
    with pytest.raises(LeftBehind, match=away):
        mend(scene)
    with pytest.raises(LeftBehind):
        take(scene, "y")
    assert {(v.vg, v.name, v.uuid) for v in everything} == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    scene.lvm.volumes = everything
    mend(scene)
    assert_as_before(scene, names, DomainState.RUNNING)


def test_a_domain_that_is_off_although_ending_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a back end of xl's does not let its disk go."""
    scene, record = begun(tmp_path)
    stop = scene.hypervisor.stop

    def stop_and_fail(domain: Domain) -> None:
        stop(domain)
        raise DomainFailed(domain=DOMAIN, deed="ended", why="its back end does not close")

    monkeypatch.setattr(scene.hypervisor, "stop", stop_and_fail)
    roll_back(scene, record)
    assert "its back end does not close" in caplog.text
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_a_new_disk_without_a_device_is_noticed_while_the_domain_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lvm.conf's volume_list leaves it out, LVM makes it and has not failed."""
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)
    scene, record = begun(tmp_path)
    names, deeds = scene.lvm.names(), list[str]()
    scene.lvm.conf["activation/volume_list"] = "system,@guest"
    scene.hypervisor.before = deeds.append
    with pytest.raises(RollbackFailed, match="volume_list"):
        roll_back(scene, record)
    assert "freeze" not in deeds
    assert_as_before(scene, names, DomainState.RUNNING)
    for volume in scene.lvm.volumes:
        if volume.name.startswith(DOMAIN):
            volume.tags.add("guest")
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_a_failure_in_the_window_is_no_traceback(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg0")

    def away(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvrename":
            scene.lvm.volumes = [v for v in scene.lvm.volumes if v.vg != "vg0"]

    scene.lvm.before = away
    with pytest.raises(SnapvmError):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("thick", THICK, ids=KINDS)
def test_what_lvm_does_not_show_for_a_moment_is_not_given_up(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """The path to a SAN goes while disks are written back, and comes again a moment later."""
    scene, record = begun(tmp_path, *thick)
    die(scene, record, "vg")

    def strike(argv: tuple[str, ...]) -> None:
        if argv[0] == "copy" and not looks:
            scene.lvm.away[thick[-1]] = UNSEEN
            raise CaptureFailed(domain=DOMAIN, why="Input/output error")
        if argv[1] == "lvs" and scene.lvm.away:
            looks.append(argv)
            if len(looks) > 1:
                scene.lvm.away.clear()

    looks: list[tuple[str, ...]] = []
    scene.lvm.before = strike
    with pytest.raises(HalfBack, match="Input/output error"):
        mend(scene)
    scene.lvm.before = lambda _argv: None
    scene.lvm.away.clear()
    mend(scene)
    assert scene.disk_data() == ["5", "5"] and scene.machine.count == 5


@pytest.mark.parametrize("thick", THICK, ids=KINDS)
def test_what_was_current_is_not_given_up_when_its_group_goes_at_the_start(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """The undo record said that it was gone, and no undo was possible once the group was back."""
    scene, record = begun(tmp_path, *thick)
    die(scene, record, "restore")

    def strike(deed: str) -> None:
        if deed == "restore":
            scene.lvm.away[thick[-1]] = UNSEEN

    scene.hypervisor.before = strike
    with pytest.raises(LeftBehind, match="LVM does not report") as told:
        mend(scene)
    assert "`snapvm repair` tries again; before that: is its volume" in told.value.hint()
    assert "if it is lost for good" in told.value.hint()
    scene.hypervisor.before = lambda _deed: None
    scene.lvm.away.clear()
    mend(scene)
    assert scene.host.catalog.leftovers(UUID) == ()
    (undo,) = (each for each in scene.ids() if each != record.id)
    roll_back(scene, scene.host.catalog.get(UUID, SnapshotId(undo)))
    assert scene.disk_data() == ["8", "8"]
