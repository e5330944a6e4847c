"""Take, rollback and delete on fakes: what is left in LVM, in the catalog and of the domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from snapvm import consistency, repair
from snapvm.consistency import TakeRequest
from snapvm.errors import (
    CommandFailed,
    Locked,
    NotStarted,
    RecordUnusable,
    SnapshotExists,
    SnapshotFailed,
    SnapvmError,
    VolumeRefused,
)
from snapvm.model import DomainState, Record, RecordKind, Silent
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene

REQUEST = TakeRequest(domain=DOMAIN)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path)


def take(scene: Scene, name: str | None = None) -> Record:
    return consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=name), Silent())


def roll_back(scene: Scene, record: Record, *, paused: bool = False) -> consistency.RollbackDone:
    plan = consistency.plan_rollback(scene.host, record)
    return consistency.rollback(scene.host, plan, paused=paused, progress=Silent())


def test_a_take_brings_memory_and_every_disk(scene: Scene) -> None:
    scene.count(5)
    record = take(scene)
    scene.count(3)
    assert record.kind is RecordKind.FULL
    assert [disk.target for disk in record.disks] == ["vda", "vdb"]
    snapshots = [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv) for disk in record.disks]
    assert [volume.data for volume in snapshots] == ["5", "5"]
    assert all("snapvm.st=ok" in volume.tags for volume in snapshots)
    assert not any(volume.writable or volume.active for volume in snapshots)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_rollback_brings_both_back_and_keeps_the_present(scene: Scene) -> None:
    scene.count(5)
    record = take(scene)
    scene.count(3)
    done = roll_back(scene, record)
    assert scene.machine.count == 5
    assert scene.disk_data() == ["5", "5"]
    assert done.undo.kind is RecordKind.UNDO
    kept = [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv) for disk in done.undo.disks]
    assert [volume.data for volume in kept] == ["8", "8"]
    scene.count(1)
    assert scene.disk_data() == ["6", "6"]


def test_rolling_back_twice_then_older_then_newer(scene: Scene) -> None:
    taken = {}
    for name in ("old", "new"):
        scene.count(4)
        taken[name] = take(scene, name)
    for name, expected in (("new", 8), ("new", 8), ("old", 4), ("new", 8)):
        scene.count(1)
        roll_back(scene, taken[name])
        assert scene.machine.count == expected
        assert scene.disk_data() == [str(expected)] * 2


def test_an_undo_record_is_gone_back_to_like_any_other(scene: Scene) -> None:
    record = take(scene)
    scene.count(9)
    undo = roll_back(scene, record).undo
    roll_back(scene, scene.host.catalog.get(UUID, undo.id))
    assert scene.disk_data() == ["9", "9"]


def test_the_disks_after_a_rollback_are_the_users_own(scene: Scene) -> None:
    for vg, name in (("vg0", "demo-d0"), ("vg1", "demo-d1")):
        scene.lvm.named(vg, name).tags = {"backup"}
    roll_back(scene, take(scene))
    for vg, name in (("vg0", "demo-d0"), ("vg1", "demo-d1")):
        assert scene.lvm.named(vg, name).tags == {"backup"}
        assert scene.lvm.named(vg, name).writable


@pytest.mark.parametrize("state", [DomainState.SHUTOFF, DomainState.PAUSED])
def test_a_domain_stays_as_its_owner_left_it(tmp_path: Path, state: DomainState) -> None:
    scene = make_scene(tmp_path, state=state)
    record = take(scene)
    assert (record.memory is not None) is state.has_memory
    assert scene.hypervisor.state_of(DOMAIN) is state
    roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is state


def test_rollback_can_leave_the_domain_paused(scene: Scene) -> None:
    roll_back(scene, take(scene), paused=True)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


def test_deleting_leaves_nothing_of_ours(scene: Scene) -> None:
    before = scene.lvm.names()
    record = take(scene)
    undo = roll_back(scene, record).undo
    consistency.delete(scene.host, [record, undo], Silent())
    assert scene.lvm.names() == before
    assert scene.ids() == []


def test_a_volume_in_use_is_not_deleted(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.named(record.disks[1].snapshot.vg, record.disks[1].snapshot.lv).opened = True
    with pytest.raises(VolumeRefused):
        consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [record.id]
    assert len(scene.lvm.names()) == 6


def test_a_name_is_given_once(scene: Scene) -> None:
    take(scene, "before-upgrade")
    with pytest.raises(SnapshotExists):
        take(scene, "before-upgrade")
    assert scene.ids() == ["before-upgrade"]


def test_a_second_snapvm_is_kept_out(scene: Scene) -> None:
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked):
        take(scene)


def test_a_snapshot_that_is_gone_is_refused_before_anything(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.volumes.remove(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    with pytest.raises(RecordUnusable):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_domain_that_does_not_start_is_named(scene: Scene) -> None:
    record = take(scene)
    scene.count(2)

    def fail(deed: str) -> None:
        if deed == "restore":
            from snapvm.errors import CaptureFailed

            raise CaptureFailed(domain=DOMAIN, why="no memory")

    scene.hypervisor.before = fail
    with pytest.raises(NotStarted):
        roll_back(scene, record)
    scene.hypervisor.before = lambda _deed: None
    assert len(scene.ids()) == 2, "what was current is kept"
    roll_back(scene, record)
    assert scene.disk_data() == ["0", "0"]


# --- every step made to fail in turn -----------------------------------------------------------


class Fault(CommandFailed):
    """An lvm command that fails because a test says so."""


def fail_command(scene: Scene, number: int, *, after: bool) -> Callable[[], int]:
    """Make the n-th effect of lvm fail, before or after it happened; return how many there were."""
    seen = 0

    def strike(argv: tuple[str, ...]) -> None:
        nonlocal seen
        if argv[1] == "lvs":
            return
        seen += 1
        if seen == number:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    if after:
        scene.lvm.after = strike
    else:
        scene.lvm.before = strike
    return lambda: seen


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 2])
def test_a_failing_snapshot_leaves_nothing(scene: Scene, number: int, after: bool) -> None:
    before = scene.lvm.names()
    fail_command(scene, number, after=after)
    with pytest.raises(SnapshotFailed):
        take(scene)
    assert scene.lvm.names() == before
    assert scene.ids() == []
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("deed", ["capture", "window", "arm", "drain", KeyboardInterrupt])
def test_a_failing_capture_leaves_nothing(scene: Scene, deed: str | type[BaseException]) -> None:
    before = scene.lvm.names()
    error = KeyboardInterrupt if deed is KeyboardInterrupt else RuntimeError
    struck = "drain" if deed is KeyboardInterrupt else deed

    def strike(now: str) -> None:
        if now == struck:
            raise error

    scene.hypervisor.before = strike
    with pytest.raises(error):
        take(scene)
    assert scene.lvm.names() == before
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 14))
def test_a_failing_rollback_is_taken_back_or_finished(
    scene: Scene, number: int, after: bool
) -> None:
    scene.count(3)
    record = take(scene)
    scene.count(4)
    before = scene.lvm.names()
    effects = fail_command(scene, number, after=after)
    try:
        roll_back(scene, record)
    except SnapvmError:
        scene.lvm.before = scene.lvm.after = lambda _argv: None
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()
    went_back = scene.machine.count == 3
    assert scene.disk_data() == [str(scene.machine.count)] * 2
    assert went_back or (scene.machine.count == 7 and scene.lvm.names() == before)
    assert len(scene.ids()) == (2 if went_back else 1)
    assert effects() >= 1


# --- killed anywhere ---------------------------------------------------------------------------


class Killed(BaseException):
    """As if by SIGKILL: nothing of snapvm runs after it."""


def kill_at(scene: Scene, number: int) -> None:
    """Make every command and deed from the n-th on end the process, undo steps included."""
    seen = 0

    def strike(_what: object) -> None:
        nonlocal seen
        seen += 1
        if seen >= number:
            raise Killed

    scene.lvm.before = strike
    scene.hypervisor.before = strike


def revive(scene: Scene) -> None:
    """Let the next snapvm begin, with the domain as the dead one left it."""
    scene.lvm.before = scene.lvm.after = lambda _argv: None
    scene.hypervisor.before = lambda _deed: None


@pytest.mark.parametrize("number", range(1, 12))
def test_a_killed_take_is_taken_back_by_the_next_command(scene: Scene, number: int) -> None:
    scene.count(2)
    kill_at(scene, number)
    try:
        take(scene)
    except BaseException:
        revive(scene)
    revive(scene)
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert len(scene.ids()) * 2 == len(scene.lvm.names()) - 4
    tags = {tag for volume in scene.lvm.volumes for tag in volume.tags}
    assert "snapvm.st=new" not in tags
    take(scene)


def test_a_snapshot_that_lands_late_is_an_orphan_and_goes(scene: Scene) -> None:
    record = take(scene)
    before = scene.lvm.names()
    origin = scene.lvm.named("vg0", "demo-d0")
    late = scene.lvm.add_disk("vg0", "demo-d0.late")
    late.tags = {"snapvm=1", "snapvm.set=0123456789ab", "snapvm.st=new"}
    foreign = scene.lvm.add_disk("vg0", "theirs")
    foreign.tags = {"snapvm.set=0123456789ab", "snapvm.st=new"}
    assert consistency.repair_all(scene.host, None, Silent()) == (
        "removed the orphan vg0/demo-d0.late",
    )
    assert scene.lvm.names() == before | {"vg0/theirs"}
    assert origin in scene.lvm.volumes and scene.ids() == [record.id]


@pytest.mark.parametrize("number", range(1, 22))
def test_a_killed_rollback_ends_whole(scene: Scene, number: int) -> None:
    scene.count(3)
    record = take(scene)
    scene.count(4)
    kill_at(scene, number)
    try:
        roll_back(scene, record)
    except BaseException:
        revive(scene)
    revive(scene)
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count in (3, 7)
    assert scene.disk_data() == [str(scene.machine.count)] * 2
    tags = {tag for volume in scene.lvm.volumes for tag in volume.tags}
    assert not tags & {"snapvm.st=new", "snapvm.st=roll"}
    assert len(scene.ids()) * 2 == len(scene.lvm.names()) - 4
