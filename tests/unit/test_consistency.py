"""Take, rollback and delete on fakes: what is left in LVM, in the catalog and of the domain."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from snapvm import consistency, durable, repair, swapping
from snapvm.consistency import TakeRequest
from snapvm.errors import Interrupted, Locked, SnapvmError, UnknownSnapshot
from snapvm.failures import (
    CaptureFailed,
    CommandFailed,
    CommandTimedOut,
    LeftBehind,
    NotStarted,
    NotStopped,
    RollbackFailed,
    SnapshotFailed,
    StorageFailed,
)
from snapvm.interrupt import shielded
from snapvm.model import DomainState, DomainUuid, HypervisorKind, Record, RecordKind, Silent
from snapvm.refusals import (
    DomainRefused,
    RecordUnusable,
    SnapshotExists,
    SnapshotReplaced,
    VolumeRefused,
)
from tests.fakes import hypervisor as fake_hypervisor
from tests.fakes.lvm import FakeConversation
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene

REQUEST = TakeRequest(domain=DOMAIN)


KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return make_scene(tmp_path, thick=request.param)


def take(scene: Scene, name: str | None = None) -> Record:
    return consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=name), Silent())


def fail_deed(scene: Scene, failing: str) -> None:
    """Make a deed of the hypervisor fail."""

    def before(deed: str) -> None:
        if deed == failing:
            raise CaptureFailed(domain=DOMAIN, why="a test wants it")

    scene.hypervisor.before = before


def roll_back(scene: Scene, record: Record, *, paused: bool = False) -> consistency.RollbackDone:
    return consistency.rollback(scene.host, record, paused=paused, progress=Silent())


def test_a_take_brings_memory_and_every_disk(scene: Scene) -> None:
    scene.count(5)
    record = take(scene)
    scene.count(3)
    assert record.kind is RecordKind.FULL
    assert [disk.target for disk in record.disks] == ["vda", "vdb"]
    snapshots = [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv) for disk in record.disks]
    assert [volume.data for volume in snapshots] == ["5", "5"]
    assert all("snapvm.st=ok" in volume.tags for volume in snapshots)
    assert not any(volume.writable for volume in snapshots)
    assert not any(volume.active for volume in snapshots if volume.pool), "a thick one has to be"
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


def test_the_present_is_kept_beside_the_start_of_the_domain(scene: Scene) -> None:
    """A restore takes seconds, and so does the bookkeeping of LVM: neither waits for the other."""
    record = take(scene, "x")
    settled = Event()
    settle = swapping.settle

    def before(deed: str) -> None:
        if deed == "restore":
            assert settled.wait(10), "the bookkeeping waits for the domain"

    def settle_and_tell(*arguments: Any) -> Record:
        undo = settle(*arguments)
        settled.set()
        return undo

    scene.hypervisor.before = before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swapping, "settle", settle_and_tell)
        undo = roll_back(scene, record).undo
    assert {undo.id, "x"} == set(scene.ids()) and scene.host.catalog.leftovers(UUID) == ()


def test_rollback_can_leave_the_domain_paused(scene: Scene) -> None:
    roll_back(scene, take(scene), paused=True)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


NEW_UUID = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")


def test_a_xen_domain_that_was_created_anew_is_the_same_machine(scene: Scene) -> None:
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    scene.count(5)
    record = take(scene, "a")
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    scene.count(2)
    with pytest.raises(SnapshotExists):
        take(scene, "a")
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_another_machine_of_that_name_is_not(scene: Scene) -> None:
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    record = take(scene)
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    scene.machine.disks = scene.machine.disks[:1]
    with pytest.raises(DomainRefused, match="another domain"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_libvirt_domain_of_another_uuid_is_another(scene: Scene) -> None:
    record = take(scene)
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    with pytest.raises(DomainRefused, match="another domain"):
        roll_back(scene, record)


def take_and_stop(scene: Scene) -> Record:
    return consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="x", stop=True), Silent())


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF])
def test_a_domain_can_end_with_its_capture(tmp_path: Path, state: DomainState) -> None:
    scene = make_scene(tmp_path, state=state)
    scene.count(5)
    record = take_and_stop(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert record.timing.pause_ms == 0
    assert scene.host.catalog.leftovers(UUID) == ()
    roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is state
    assert state is not DomainState.RUNNING or scene.machine.count == 5


@pytest.mark.parametrize("deed", ["arm", "drain"])
def test_one_that_should_end_runs_on_when_it_was_not_captured(scene: Scene, deed: str) -> None:
    before = scene.lvm.names()
    fail_deed(scene, deed)
    with pytest.raises(SnapvmError):
        take_and_stop(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.lvm.names() == before
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


def test_one_that_does_not_end_runs_on_and_its_snapshot_stays(scene: Scene) -> None:
    fail_deed(scene, "stop")
    with pytest.raises(NotStopped):
        take_and_stop(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("is_running", [False, True])
def test_a_stop_that_was_killed_is_finished(scene: Scene, is_running: bool) -> None:
    record = take(scene)
    journal = {"record": record.id, "set": record.set}
    scene.host.catalog.write_journal(UUID, "stop", journal)
    if not is_running:
        with scene.hypervisor.frozen(scene.machine.domain):
            pass
    repair.finish_pending(scene.host, UUID, DOMAIN)
    wanted = DomainState.RUNNING if is_running else DomainState.SHUTOFF
    assert scene.hypervisor.state_of(DOMAIN) is wanted
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_stop_without_its_record_is_none(scene: Scene) -> None:
    take(scene)
    scene.host.catalog.write_journal(UUID, "stop", {"record": "other", "set": "x"})
    with scene.hypervisor.frozen(scene.machine.domain):
        pass
    repair.finish_pending(scene.host, UUID, DOMAIN)
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


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_group_that_is_renamed_or_gone_does_not_hinder_a_delete(
    scene: Scene, is_gone: bool
) -> None:
    """`check` itself says to delete what has lost its volumes."""
    record = take(scene)
    for volume in [volume for volume in scene.lvm.volumes if volume.vg == "vg1"]:
        volume.vg = "renamed"
        if is_gone:
            scene.lvm.volumes.remove(volume)
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


def test_an_image_that_has_changed_is_refused_and_nothing_is_left(scene: Scene) -> None:
    """It is read while the clones are made: they go again, and the domain runs on."""
    record = take(scene)
    scene.count(3)
    assert record.memory is not None
    image = scene.host.catalog.path(record, record.memory.file)
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    names = scene.lvm.names()
    with pytest.raises(RecordUnusable, match="has changed"):
        roll_back(scene, record)
    assert scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["3", "3"]
    assert scene.ids() == [record.id]


def test_a_domain_that_does_not_start_is_named(scene: Scene) -> None:
    record = take(scene)
    scene.count(2)
    fail_deed(scene, "restore")
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


def test_memory_is_not_waited_for_when_a_snapshot_fails(scene: Scene) -> None:
    """The domain stands still meanwhile: for all of its memory, when it is captured so."""
    told: list[bool] = []

    def fail_in_window(argv: tuple[str, ...]) -> None:
        if scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    scene.lvm.before = fail_in_window
    scene.hypervisor.arming = lambda given_up: told.append(given_up.wait(20))
    with pytest.raises(SnapshotFailed):
        take(scene)
    assert told == [True]
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_no_snapshot_is_begun_when_the_time_of_the_window_is_over(scene: Scene) -> None:
    """One limit for all of them, however many disks there are."""
    hurried = replace(scene.host.settings, window_limit_seconds=1e-9)
    scene = replace(scene, host=replace(scene.host, settings=hurried))
    before = scene.lvm.names()
    with pytest.raises(SnapshotFailed, match="that the window may take are over"):
        take(scene)
    assert scene.lvm.names() == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_record_that_may_not_last_is_not_visible(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is there, but not on the disk: its volumes go, and so it has to go before them."""
    before = scene.lvm.names()
    sync_folder = durable.sync_folder

    def wear_out(folder: Path) -> None:
        if (folder / "x").exists():
            raise OSError(errno.EIO, "the disk has a bad block")
        sync_folder(folder)

    with monkeypatch.context() as patch, pytest.raises(StorageFailed):
        patch.setattr(durable, "sync_folder", wear_out)
        take(scene, "x")
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()
    assert scene.lvm.names() == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_rollback_does_not_keep_the_domain_standing_for_long(scene: Scene) -> None:
    record = take(scene, "x")
    before = scene.lvm.names()
    hurried = replace(scene.host.settings, window_limit_seconds=1e-9)
    scene = replace(scene, host=replace(scene.host, settings=hurried))
    scene.count(3)
    with pytest.raises(RollbackFailed, match="longer than"):
        roll_back(scene, record)
    assert scene.lvm.names() == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 3 and scene.host.catalog.leftovers(UUID) == ()


def test_an_lvm_that_hangs_for_good_is_left_to_repair(scene: Scene) -> None:
    """What it was told may yet be done: so nothing is said to be put back before it has ended."""
    before = scene.lvm.names()
    orders: list[str] = []
    scene.lvm.hanging = orders
    with pytest.raises(LeftBehind, match="still at work in vg0") as left:
        take(scene)
    assert isinstance(left.value.__cause__, SnapshotFailed)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.ids() == [] and len(scene.host.catalog.leftovers(UUID)) == 1
    scene.lvm.hanging = None
    for order in orders:
        with suppress(CommandFailed):  # the store it was to attach is gone
            scene.lvm.obey(("lvm", *order.split()))
    take(scene, "next")
    assert scene.ids() == ["next"] and scene.host.catalog.leftovers(UUID) == ()
    consistency.delete(scene.host, list(scene.host.catalog.records(UUID)), Silent())
    assert scene.lvm.names() == before


def test_what_an_lvm_makes_late_is_removed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for a moment, and what it did after the removal is removed too."""
    before = scene.lvm.names()
    orders: list[str] = []
    scene.lvm.hanging = orders

    def at_last(_talk: FakeConversation, limit_seconds: float) -> bool:
        if limit_seconds and scene.lvm.hanging is not None:
            scene.lvm.hanging = None
            for order in orders:
                with suppress(CommandFailed):
                    scene.lvm.obey(("lvm", *order.split()))
        return scene.lvm.hanging is None

    monkeypatch.setattr(FakeConversation, "ended", at_last)
    with pytest.raises(SnapshotFailed):
        take(scene)
    assert scene.lvm.names() == before
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("work", ["take", "rollback"])
def test_the_journal_stays_while_something_is_left(scene: Scene, work: str) -> None:
    """So that the next command on the domain mends it, as the exit status promises."""
    record = take(scene, "x")
    before = scene.lvm.names()

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] in ("lvremove", "lvconvert") or "--snapshot" in argv:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    scene.lvm.after = fail
    with pytest.raises(LeftBehind):
        take(scene) if work == "take" else roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    (left,) = scene.host.catalog.leftovers(UUID)
    assert left.intent["kind"] == work
    scene.lvm.after = lambda _argv: None
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.ids() == ["x"]
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_group_that_is_gone_keeps_nobody_from_work(scene: Scene) -> None:
    """Exported or renamed since the take that died: what was made in the others goes."""
    before = scene.lvm.names()

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] in ("lvremove", "lvconvert") or "--snapshot" in argv:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    scene.lvm.after = fail
    with pytest.raises(LeftBehind):
        take(scene)
    scene.lvm.after = lambda _argv: None
    (left,) = scene.host.catalog.leftovers(UUID)
    written = left.path / "intent.json"
    intent = json.loads(written.read_text())
    written.write_text(json.dumps({**intent, "groups": ["exported", *intent["groups"]]}))
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_a_store_that_runs_full_at_once_is_told_of(tmp_path: Path) -> None:
    """The domain writes more, while its memory is written, than its new snapshot can keep."""
    scene = make_scene(tmp_path, thick=("vg1",))
    before = scene.lvm.names()

    def overflow(deed: str) -> None:
        for volume in scene.lvm.volumes:
            volume.invalid = deed == "drain" and bool(volume.origin and not volume.pool)

    scene.hypervisor.before = overflow
    with pytest.raises(SnapshotFailed, match=r"vdb .*more changed than its 68 MiB can keep"):
        take(scene)
    assert scene.lvm.names() == before and scene.ids() == []


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


@pytest.mark.parametrize("quiesce", [False, True])
def test_an_interruption_in_the_instant_before_the_window_shields_its_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, quiesce: bool
) -> None:
    """The signal arrives after the last snapshot and before the resume is out of its reach."""
    arrived: list[str] = []

    @contextmanager
    def late_shield() -> Iterator[None]:
        if not arrived:
            arrived.append("SIGINT")
            raise Interrupted(signal="SIGINT")
        with shielded():
            yield

    monkeypatch.setattr(fake_hypervisor, "shielded", late_shield)
    with pytest.raises(Interrupted):
        consistency.take(scene.host, replace(REQUEST, quiesce=quiesce), Silent())
    assert arrived
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert not scene.machine.frozen
    assert scene.ids() == []
    assert not [v for v in scene.lvm.volumes if "snapvm=1" in v.tags]
