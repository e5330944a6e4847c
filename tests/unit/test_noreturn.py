"""A rollback that fails past its point of no return: never told as put back, and finished later."""

from __future__ import annotations

import json
import threading
from itertools import count
from pathlib import Path

import pytest

from snapvm import durable, repair
from snapvm.attention import HalfBack, LeftBehind, NotStarted
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.failures import CommandFailed, HypervisorFailed
from snapvm.model import Domain, DomainState, Record
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit import deeds
from tests.unit.deeds import revive, take_at_five

FULL = "No space left on device"


def roll_back(scene: Scene, record: Record) -> SnapvmError:
    """Go back, which is going to fail, and return how."""
    with pytest.raises(SnapvmError) as failed:
        deeds.roll_back(scene, record)
    return failed.value


def assert_mended(scene: Scene) -> None:
    revive(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("phase", ["swapped", "restored", "started"])
def test_a_journal_that_cannot_be_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    record = take_at_five(scene)
    write = durable.write

    def full(path: Path, data: bytes) -> None:
        if path.name == ".rollback.json" and json.loads(data)["phase"] == phase:
            raise OSError(28, FULL)
        write(path, data)

    monkeypatch.setattr(durable, "write", full)
    failed = roll_back(scene, record)
    assert FULL in str(failed)
    if phase == "started":
        assert isinstance(failed, LeftBehind) and failed.exit_status is ExitStatus.REPAIR_NEEDED
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    else:
        assert isinstance(failed, HalfBack) and failed.exit_status is ExitStatus.ATTENTION
        assert failed.hint().endswith(f"snapvm repair {DOMAIN}")
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    monkeypatch.setattr(durable, "write", write)
    assert_mended(scene)


def test_a_host_that_has_no_thread_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was called a bug, and the domain, which was off, not mentioned."""
    record = take_at_five(scene)

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:

        def before(deed: str) -> None:
            if deed == "stop":
                patch.setattr(threading.Thread, "start", no_thread)

        scene.hypervisor.before = before
        failed = roll_back(scene, record)
    assert isinstance(failed, NotStarted) and "one more thread" in str(failed)
    assert failed.hint().endswith(f"snapvm repair {DOMAIN}")
    assert_mended(scene)


def test_a_repair_that_cannot_write_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(tmp_path)
    record = take_at_five(scene)
    point = "after write .rollback.json 3"
    assert mortal.kill_at(scene, lambda dying: deeds.roll_back(dying, record), point)
    write = durable.write

    def full(path: Path, data: bytes) -> None:
        if path.name == ".rollback.json":
            raise OSError(28, FULL)
        write(path, data)

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(HalfBack, match=FULL):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    monkeypatch.setattr(durable, "write", write)
    assert_mended(scene)


def test_names_that_cannot_be_put_back_are_not_called_harmless(tmp_path: Path) -> None:
    """The domain has its own disks open; by the names it would get others, or none."""
    scene = make_scene(tmp_path)
    record = take_at_five(scene)
    seen = 0

    def fail(argv: tuple[str, ...]) -> None:
        nonlocal seen
        seen += argv[1] == "lvrename"
        if argv[1] == "lvremove" or (argv[1] == "lvrename" and seen > 2):
            raise CommandFailed(argv=argv, status=5, stderr="in use")

    scene.lvm.before = fail
    failed = roll_back(scene, record)
    assert isinstance(failed, LeftBehind) and scene.lvm.named("vg0", "demo-d0").data == "5"
    assert "names of the disks (until then the domain must not be started)" in str(failed)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    revive(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.disk_data() == ["8", "8"] and scene.host.catalog.leftovers(UUID) == ()


def refuse_lvm(scene: Scene) -> None:
    """Let LVM say nothing about any volume, as when a lock of its own is held."""

    def refuse(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvs":
            raise CommandFailed(argv=argv, status=5, stderr="a lock is held")

    scene.lvm.before = refuse


@pytest.mark.parametrize(
    ("point", "kind", "disks"),
    [
        ("after write .rollback.json 3", HalfBack, "do not belong together"),
        ("after write .rollback.json 4", NotStarted, "of x, but the domain did not start"),
    ],
    ids=["swapped", "restored"],
)
def test_a_repair_that_lvm_does_not_answer_says_that_the_domain_is_off(
    tmp_path: Path, point: str, kind: type[SnapvmError], disks: str
) -> None:
    """It ended with status 7, that of what only takes room, and whoever read that started it."""
    scene = make_scene(tmp_path, thick=("vg1",))
    record = take_at_five(scene)
    assert mortal.kill_at(scene, lambda dying: deeds.roll_back(dying, record), point)
    refuse_lvm(scene)
    with pytest.raises(kind, match=disks) as told:
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert told.value.exit_status is ExitStatus.ATTENTION and "a lock is held" in str(told.value)
    assert told.value.hint().endswith(f"fix the cause, then: snapvm repair {DOMAIN}")
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert_mended(scene)


@pytest.mark.parametrize(
    ("point", "kind"),
    [("after write .rollback.json 3", HalfBack), ("after write .rollback.json 4", LeftBehind)],
    ids=["swapped", "restored"],
)
def test_one_that_is_to_stay_off_is_not_to_be_started_before_its_disks_belong_together(
    tmp_path: Path, point: str, kind: type[SnapvmError]
) -> None:
    """That it is off is as it should be, once they do."""
    scene = make_scene(tmp_path, thick=("vg1",), state=DomainState.SHUTOFF)
    record = deeds.take(scene, "x")
    scene.hypervisor.start(scene.machine.domain, paused=False)
    scene.count(3)
    assert mortal.kill_at(scene, lambda dying: deeds.roll_back(dying, record), point)
    refuse_lvm(scene)
    with pytest.raises(kind):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    revive(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == ["0", "0"] and scene.host.catalog.leftovers(UUID) == ()


def test_a_domain_whose_disks_were_being_exchanged_is_not_to_be_started(tmp_path: Path) -> None:
    """Its owner has ended it since, and the name of one disk leads to the clone."""
    scene = make_scene(tmp_path)
    record = take_at_five(scene)
    deeds.die(scene, record, "lvrename vg1")
    scene.hypervisor.resume(scene.machine.domain)
    scene.hypervisor.stop(scene.machine.domain)
    refuse_lvm(scene)
    with pytest.raises(HalfBack, match="may not belong together") as told:
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert told.value.hint().startswith("do not start it")
    revive(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.disk_data() == ["8", "8"] and scene.host.catalog.leftovers(UUID) == ()


def test_a_domain_that_cannot_be_asked_for_is_not_said_to_be_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(tmp_path)
    deeds.die(scene, take_at_five(scene), "lvcreate")
    find, answers = scene.hypervisor.find, count(1)

    def away(name: str) -> Domain:
        if next(answers) == 1:
            return find(name)
        raise HypervisorFailed("nobody answers")

    with monkeypatch.context() as patch, pytest.raises(LeftBehind, match="nobody answers"):
        patch.setattr(scene.hypervisor, "find", away)
        repair.finish_pending(scene.host, UUID, DOMAIN)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def refuse_restore(scene: Scene) -> None:
    """Let the hypervisor say no, as libvirt does of a transient domain that died at once."""

    def refuse(deed: str) -> None:
        if deed == "restore":
            raise HypervisorFailed("Domain not found")

    scene.hypervisor.before = refuse


def test_a_hypervisor_that_says_no_in_its_own_way(scene: Scene) -> None:
    record = take_at_five(scene)
    refuse_restore(scene)
    failed = roll_back(scene, record)
    assert isinstance(failed, NotStarted) and "Domain not found" in str(failed)
    assert f"then: snapvm rollback {record.ref}; or go back to" in failed.hint()
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()
    revive(scene)
    deeds.roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def fail_bookkeeping(scene: Scene) -> None:
    """Let what marks the present as kept fail: the last commands of a rollback."""

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvchange" and "--deltag" in argv:
            raise CommandFailed(argv=argv, status=5, stderr="in use")

    scene.lvm.before = fail


def test_bookkeeping_that_fails_is_left_to_repair(scene: Scene) -> None:
    record = take_at_five(scene)
    fail_bookkeeping(scene)
    failed = roll_back(scene, record)
    assert isinstance(failed, LeftBehind) and "in use" in str(failed)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert_mended(scene)


def test_a_domain_that_is_off_counts_more_than_bookkeeping(scene: Scene) -> None:
    record = take_at_five(scene)
    fail_bookkeeping(scene)
    refuse_restore(scene)
    failed = roll_back(scene, record)
    assert isinstance(failed, NotStarted) and "Domain not found" in str(failed)
    assert failed.hint().endswith(f"snapvm repair {DOMAIN}")
    assert_mended(scene)


def test_a_journal_that_cannot_be_removed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    record = take_at_five(scene)
    unlink = Path.unlink

    def fail(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".rollback.json":
            raise OSError(30, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", fail)
    assert isinstance(roll_back(scene, record), LeftBehind)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    monkeypatch.setattr(Path, "unlink", unlink)
    assert_mended(scene)
