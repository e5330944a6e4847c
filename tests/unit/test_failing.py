"""Commands and deeds that fail, one after another: what is left of a take and of a rollback."""

from __future__ import annotations

import errno
import json
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency, durable, repair
from snapvm.attention import LeftBehind
from snapvm.cowsize import CowSize
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.failures import (
    CaptureFailed,
    CommandFailed,
    CommandTimedOut,
    HypervisorFailed,
    LackedMeanwhile,
    RollbackFailed,
    SnapshotFailed,
    StorageFailed,
)
from snapvm.lvm.argv import role_tag
from snapvm.memory import libvirtimage
from snapvm.model import Domain, DomainState, Role, Silent
from tests.fakes import machine
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import begun, fail_command, fail_late, revive, roll_back, take, with_settings

KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}


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


def test_a_lack_in_the_window_is_no_refusal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The domain stood still for it, which status 4 denies."""
    start = threading.Thread.start

    def start_outside(thread: threading.Thread) -> None:
        if scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_outside)
    before = scene.lvm.names()
    with pytest.raises(LackedMeanwhile, match="room for one more thread") as failed:
        take(scene)
    assert failed.value.exit_status is ExitStatus.FAILED
    assert failed.value.hint().endswith("try again when it has")
    assert (scene.lvm.names(), scene.ids()) == (before, [])
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


@pytest.mark.parametrize("thick", [("vg0",), ("vg0", "vg1")], ids=["mixed", "thick"])
def test_a_group_that_is_long_in_use_does_not_keep_a_thick_disk_from_going_back(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """As by the lvremove of a large volume with issue_discards: a report would wait for it."""
    scene, record = begun(tmp_path, *thick)

    def be_busy(_argv: tuple[str, ...]) -> None:
        stands = scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
        scene.lvm.busy_seconds = 60.0 if stands else 0.0

    scene.lvm.after = be_busy
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    assert checking.look(scene.host, None, Silent(), deep=False) == ()


def test_a_kernel_that_does_not_answer_does_not_keep_the_domain_standing(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg0")
    before = scene.lvm.names()

    def hang_there(argv: tuple[str, ...]) -> None:
        if argv[0] == "dmsetup":
            raise CommandTimedOut(argv=argv, seconds=30.0)

    scene.lvm.before = hang_there
    with pytest.raises(CommandTimedOut):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and scene.machine.count == 8
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("work", ["take", "rollback"])
def test_the_journal_stays_while_something_is_left(scene: Scene, work: str) -> None:
    """So that the next command on the domain mends it, as the exit status promises."""
    record = take(scene, "x")
    before = scene.lvm.names()
    fail_late(scene)
    with pytest.raises(LeftBehind):
        take(scene) if work == "take" else roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    (left,) = scene.host.catalog.leftovers(UUID)
    assert left.intent["kind"] == work
    scene.lvm.after = lambda _argv: None
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.ids() == ["x"]
    assert scene.host.catalog.leftovers(UUID) == ()


def test_what_is_left_is_told_of_though_nobody_says_how_the_domain_is(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A libvirtd that is restarted just then must not be all that the user hears of."""
    before = scene.lvm.names()
    fail_late(scene)

    def be_away(name: str) -> Domain:
        raise HypervisorFailed(f"nobody answers for {name}")

    with monkeypatch.context() as patch, pytest.raises(LeftBehind):
        scene.hypervisor.before = lambda deed: (
            patch.setattr(scene.hypervisor, "find", be_away) if deed == "drain" else None
        )
        take(scene)
    revive(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_snapshot_is_whole_though_its_volumes_are_still_marked_as_unfinished(
    scene: Scene,
) -> None:
    """LVM may fail when the record is visible already: nothing is taken back then."""

    def fail(argv: tuple[str, ...]) -> None:
        if role_tag(Role.OK) in argv:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    scene.lvm.before = fail
    record = take(scene, "x")
    revive(scene)
    assert consistency.repair_all(scene.host, None, Silent()) == (
        f"corrected the tags of {record.ref}",
    )
    assert checking.look(scene.host, None, Silent(), deep=True) == ()


def test_a_group_that_is_gone_keeps_nobody_from_work(scene: Scene) -> None:
    """An older snapvm wrote only names, and a name may have been given up for another."""
    before = scene.lvm.names()
    fail_late(scene)
    with pytest.raises(LeftBehind):
        take(scene)
    scene.lvm.after = lambda _argv: None
    (left,) = scene.host.catalog.leftovers(UUID)
    written = left.path / "intent.json"
    intent = json.loads(written.read_text())
    del intent["disks"]
    written.write_text(json.dumps({**intent, "groups": ["renamed", *intent["groups"]]}))
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_a_store_that_runs_full_at_once_is_told_of(tmp_path: Path) -> None:
    """The domain writes more, while its memory is written, than its new snapshot can keep."""
    scene = with_settings(make_scene(tmp_path, thick=("vg1",)), cow_size=CowSize(percent=20))
    before = scene.lvm.names()

    def overflow(deed: str) -> None:
        for volume in scene.lvm.volumes:
            volume.invalid = deed == "drain" and bool(volume.origin and not volume.pool)

    scene.hypervisor.before = overflow
    with pytest.raises(SnapshotFailed, match=r"vdb .*more changed than its 16 MiB can keep"):
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
@pytest.mark.parametrize("thick", KINDS.values(), ids=list(KINDS))
def test_a_failing_rollback_is_taken_back_or_finished(
    tmp_path: Path, thick: tuple[str, ...], after: bool
) -> None:
    """Each of its effects fails once; how many there are, one without a failure tells."""

    def roll_back_failing(number: int) -> int:
        (folder := tmp_path / str(number)).mkdir()
        scene = make_scene(folder, thick=thick)
        scene.count(3)
        record = take(scene)
        scene.count(4)
        before = scene.lvm.names()
        seen = fail_command(scene, number, after=after)
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
        return seen()

    effects = roll_back_failing(0)
    assert effects > 3
    for number in range(1, effects + 1):
        assert roll_back_failing(number) >= number


def test_an_image_that_libvirt_mislabels_is_no_snapshot(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header says sparse, and an ordinary stream follows: libvirt could not start it."""

    def mislabelled(count: int, *, frozen: bool = False) -> bytes:
        image = bytearray(machine.image_bytes(count, frozen=frozen))
        struct.pack_into("<I", image, 28, libvirtimage.FORMAT_SPARSE)
        return bytes(image)

    names = scene.lvm.names()
    monkeypatch.setattr("tests.fakes.capture.image_bytes", mislabelled)
    with pytest.raises(CaptureFailed, match="snapshot_image_format"):
        take(scene)
    assert scene.ids() == [] and scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_an_image_that_stays_plain_where_none_is_restored_is_no_snapshot(scene: Scene) -> None:
    """It was recorded, and the rollback, weeks later, said that this host cannot restore it."""
    names = scene.lvm.names()
    scene.hypervisor.installed = {"libvirt": "11.3.0", "qemu": "11.0.1"}
    with pytest.raises(CaptureFailed, match=r"made sparse \(.*libvirt 12\.1.*--compress zstd"):
        take(scene)
    assert scene.ids() == [] and scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_the_first_thick_snapshot_since_a_boot_finds_its_module(tmp_path: Path) -> None:
    """Of two lvms that ask for it at once one is told that there is none: seen in the lab."""
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    scene.lvm.has_snapshot_target = False
    assert len(take(scene, "x").disks) == 2


def test_a_kernel_that_is_not_asked_for_it_in_advance_loads_it_all_the_same(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, thick=("vg0",))

    def fail(argv: tuple[str, ...]) -> None:
        if argv[:2] == ("dmsetup", "target-version"):
            raise CommandFailed(argv=argv, status=3, stderr="no such command")

    scene.lvm.before = fail
    assert len(take(scene, "x").disks) == 2
