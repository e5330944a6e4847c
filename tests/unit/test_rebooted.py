"""The host goes down in the middle of a rollback, and starts the domain when it comes up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import consistency, hostid
from snapvm.attention import LeftBehind, LeftOff, StartedTooSoon
from snapvm.failures import CommandFailed
from snapvm.model import DomainState, Record, Silent, SnapshotId
from tests.fakes.mortal import kill_at
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import begun, die, mend, roll_back, take_at_five

OLD, NEW = "the boot before", "this boot"


@pytest.fixture(autouse=True)
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text(f"{OLD}\n")
    monkeypatch.setattr(hostid, "BOOT_PATH", path)
    return path


def go_down(scene: Scene, record: Record, where: str) -> None:
    """Lose the power before a deed, or an effect of LVM's, of a rollback."""
    die(scene, record, where)
    scene.hypervisor.stop(scene.machine.domain)


def come_up(scene: Scene, boot: Path, *, counting: int = 0) -> None:
    """Boot the host, which starts the domain; it counts."""
    boot.write_text(f"{NEW}\n")
    scene.hypervisor.start(scene.machine.domain, paused=False)
    scene.count(counting)


def test_a_domain_that_stands_still_runs_before_names_are_put_back(tmp_path: Path) -> None:
    """Found by the crash sweep: each rename would keep it standing longer."""
    scene, record = begun(tmp_path)
    names = scene.lvm.names()

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvrename":
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    die(scene, record, "lvrename vg1 demo-d1")
    scene.hypervisor.suspend(DOMAIN)
    scene.lvm.before = fail
    with pytest.raises(LeftBehind):
        mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    scene.lvm.before = lambda _argv: None
    mend(scene)
    assert scene.lvm.names() == names and scene.disk_data() == ["8", "8"]


def test_what_it_wrote_onto_the_clones_stays(tmp_path: Path, boot: Path) -> None:
    scene, record = begun(tmp_path)
    go_down(scene, record, "stop")
    come_up(scene, boot, counting=2)
    mend(scene)
    scene.count(1)
    assert scene.machine.count == 8 and scene.disk_data() == ["8", "8"]
    assert scene.host.catalog.leftovers(UUID) == ()
    assert not [v for v in scene.lvm.volumes if "snapvm.st=roll" in v.tags]
    (undo,) = (id_ for id_ in scene.ids() if id_ != "x")
    former = scene.host.catalog.get(UUID, SnapshotId(undo))
    kept = [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv).data for disk in former.disks]
    assert kept == ["8", "8"], "what was current is kept"
    consistency.rollback(scene.host, record, paused=False, progress=Silent())
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_the_same_without_a_boot_the_clones_are_held(tmp_path: Path, boot: Path) -> None:
    """The domain is ended and started by hand: the former disks are held by nobody then."""
    scene, record = begun(tmp_path)
    go_down(scene, record, "stop")
    scene.hypervisor.start(scene.machine.domain, paused=False)
    scene.count(2)
    mend(scene)
    assert boot.read_text().strip() == OLD
    assert scene.machine.count == 7 and scene.disk_data() == ["7", "7"]
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


def test_thick_disks_are_still_the_present(tmp_path: Path, boot: Path) -> None:
    """Nothing of it is taken back from below the domain."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    names = scene.lvm.names()
    go_down(scene, record, "stop")
    come_up(scene, boot, counting=2)
    mend(scene)
    assert scene.machine.count == 10 and scene.disk_data() == ["10", "10"]
    assert scene.lvm.names() == names and scene.ids() == ["x"]
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("ends", [DomainState.RUNNING, DomainState.SHUTOFF], ids=str)
def test_a_start_that_goes_on_without_snapvm_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: DomainState
) -> None:
    """snapvm was killed, libvirtd reads the memory: only its end tells whether there is more to do.

    Found by the crash sweep.
    """
    scene, record = begun(tmp_path, "vg1")
    go_down(scene, record, "restore")
    path = scene.host.catalog.path(record, "memory.save")
    scene.hypervisor.restore(scene.machine.domain, path, paused=True)
    waited = []

    def end(_seconds: float) -> None:
        waited.append(scene.host.catalog.leftovers(UUID))
        if ends is DomainState.RUNNING:
            scene.hypervisor.resume(scene.machine.domain)
        else:
            scene.hypervisor.stop(scene.machine.domain)

    monkeypatch.setattr("snapvm.rollbackrepair.time.sleep", end)
    mend(scene)
    assert len(waited) == 1 and waited[0] != ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    assert scene.host.catalog.leftovers(UUID) == ()


def test_disks_of_two_times_are_told_of_and_made_anew(tmp_path: Path, boot: Path) -> None:
    """A thin one is the clone by then and a thick one the present: neither is worth keeping."""
    scene, record = begun(tmp_path, "vg1")
    go_down(scene, record, "stop")
    come_up(scene, boot, counting=2)
    volumes = {(v.name, v.uuid) for v in scene.lvm.volumes}
    for _ in range(2):
        with pytest.raises(StartedTooSoon):
            mend(scene)
    assert {(v.name, v.uuid) for v in scene.lvm.volumes} == volumes
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    scene.hypervisor.stop(scene.machine.domain)
    mend(scene)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()
    assert len(scene.lvm.names()) == 8


def test_disks_that_are_exchanged_in_part_are_told_of(tmp_path: Path, boot: Path) -> None:
    scene, record = begun(tmp_path)
    names = scene.lvm.names()
    go_down(scene, record, "lvrename vg1 demo-d1")
    come_up(scene, boot)
    volumes = {(v.name, v.uuid) for v in scene.lvm.volumes}
    with pytest.raises(StartedTooSoon) as told:
        mend(scene)
    assert "shut it off" in told.value.hint()
    assert {(v.name, v.uuid) for v in scene.lvm.volumes} == volumes
    scene.hypervisor.stop(scene.machine.domain)
    mend(scene)
    assert scene.disk_data() == ["8", "8"]
    assert scene.lvm.names() == names and scene.ids() == ["x"]
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize(
    ("where", "thick"),
    [("restore", ()), ("restore", ("vg1",)), ("restore", ("vg0", "vg1")), ("stop", ())],
)
def test_memory_never_meets_disks_that_may_have_run(
    tmp_path: Path, boot: Path, where: str, thick: tuple[str, ...]
) -> None:
    """Whoever booted the host may have started the domain and shut it off: who knows."""
    scene, record = begun(tmp_path, *thick)
    go_down(scene, record, where)
    boot.write_text(f"{NEW}\n")
    if where == "restore":
        scene.hypervisor.start(scene.machine.domain, paused=False)
        scene.count(2)
        scene.hypervisor.stop(scene.machine.domain)
        newer = scene.disk_data()
    else:
        newer = ["5", "5"]
    with pytest.raises(LeftOff) as told:
        mend(scene)
    assert "snapvm rollback demo@x" in told.value.hint()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == newer
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()
    mend(scene)
    consistency.rollback(scene.host, record, paused=False, progress=Silent())
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_disks_that_may_have_run_are_of_one_instant_again(tmp_path: Path, boot: Path) -> None:
    """It died when all was written back, but nothing said so: only its clones have what is new."""
    scene, record = begun(tmp_path, "vg1")
    assert kill_at(scene, lambda dying: roll_back(dying, record), "before write .rollback.json 4")
    come_up(scene, boot, counting=2)
    scene.hypervisor.stop(scene.machine.domain)
    with pytest.raises(LeftOff):
        mend(scene)
    assert scene.disk_data() == ["5", "5"]
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()
    assert len(scene.lvm.names()) == 8


@pytest.mark.parametrize("thick", [("vg1",), ("vg0", "vg1")], ids=["mixed", "thick"])
def test_thick_disks_that_may_have_run_are_not_written_back(
    tmp_path: Path, boot: Path, thick: tuple[str, ...]
) -> None:
    """What they were given after the boot is kept nowhere else."""
    scene, record = begun(tmp_path, *thick)
    names = scene.lvm.names()
    go_down(scene, record, "stop")
    boot.write_text(f"{NEW}\n")
    mend(scene)
    assert scene.disk_data() == ["8", "8"]
    assert scene.lvm.names() == names and scene.ids() == ["x"]
    assert scene.host.catalog.leftovers(UUID) == ()


def test_one_without_memory_that_stayed_off_is_taken_to_the_end(tmp_path: Path, boot: Path) -> None:
    scene = make_scene(tmp_path)
    record = take_at_five(scene, with_memory=False)
    go_down(scene, record, "stop")
    boot.write_text(f"{NEW}\n")
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["5", "5"]


def test_disks_without_a_device_get_one_before_the_domain_is_started(
    tmp_path: Path, boot: Path
) -> None:
    scene = make_scene(tmp_path)
    record = take_at_five(scene, with_memory=False)
    die(scene, record, "start")
    boot.write_text(f"{NEW}\n")
    for number in range(2):
        scene.lvm.named(f"vg{number}", f"demo-d{number}").active = False
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["5", "5"]
