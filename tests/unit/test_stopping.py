"""`take --stop`, and what finishes it: the domain ends once its snapshot is whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from snapvm import consistency, hostid, repair
from snapvm.attention import LeftBehind, NotStopped, StuckPaused
from snapvm.catalog import Catalog
from snapvm.consistency import TakeRequest
from snapvm.errors import SnapvmError
from snapvm.failures import StorageFailed
from snapvm.model import DomainState, DomainUuid, Record, Silent
from snapvm.recordfolder import Work
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import fail_deed, mend, revive, roll_back, take

LEFT_STANDING = "demo is paused, and may not be the run that was to be stopped"


def take_and_stop(scene: Scene) -> Record:
    return consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="x", stop=True), Silent())


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF])
def test_a_domain_can_end_with_its_capture(tmp_path: Path, state: DomainState) -> None:
    scene = make_scene(tmp_path, state=state)
    scene.count(5)
    record = take_and_stop(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.hypervisor.domain_ends is state.has_memory
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


def test_nothing_is_left_of_one_whose_record_cannot_be_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise StorageFailed(path="/state/x", why="No space left on device")

    before = scene.lvm.names()
    monkeypatch.setattr(Catalog, "commit", fail)
    with pytest.raises(StorageFailed):
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


def test_one_that_its_owner_had_paused_is_not_let_run_for_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, state=DomainState.PAUSED)
    fail_deed(scene, "stop")
    with pytest.raises(NotStopped):
        take_and_stop(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID) == ()


def test_one_that_neither_ends_nor_runs_on_is_ended_by_the_next_command(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirtd was away: it stayed paused, which was not said, and no repair looked after it."""

    def fail(_domain: object) -> NoReturn:
        raise StuckPaused(domain=DOMAIN, why="no libvirtd answers")

    fail_deed(scene, "stop")
    with monkeypatch.context() as patch, pytest.raises(NotStopped, match="is paused") as stands:
        patch.setattr(scene.hypervisor, "resume", fail)
        take_and_stop(scene)
    assert "`snapvm repair demo` ends it" in stands.value.hint()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED and scene.ids() == ["x"]
    scene.hypervisor.before = lambda _deed: None
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF


@pytest.mark.parametrize("deed", ["", "stop"])
def test_a_journal_that_cannot_be_removed_is_told_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    """It said that all was put back: the domain was off, or had not ended, and the record there."""
    end_journal = scene.host.catalog.end_journal

    def wear_out(uuid: DomainUuid, work: Work) -> None:
        if scene.ids():
            raise StorageFailed(path=uuid, why="Read-only file system")
        end_journal(uuid, work)

    fail_deed(scene, deed)
    with monkeypatch.context() as patch, pytest.raises(NotStopped if deed else LeftBehind) as told:
        patch.setattr(scene.host.catalog, "end_journal", wear_out)
        take_and_stop(scene)
    assert "demo@x is complete" in str(told.value).replace(", which", "")
    revive(scene)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    wanted = DomainState.RUNNING if deed else DomainState.SHUTOFF
    assert scene.hypervisor.state_of(DOMAIN) is wanted
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID) == ()


def test_one_that_its_owner_let_run_on_meanwhile_is_not_ended(scene: Scene) -> None:
    """It was seen to be paused while its memory was written; what it did then was lost."""

    def resume(deed: str) -> None:
        if deed == "drain":
            scene.hypervisor.resume(scene.machine.domain)

    scene.hypervisor.before = resume
    with pytest.raises(NotStopped, match="somebody resumed it"):
        take_and_stop(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("is_running", [False, True])
def test_a_stop_that_was_killed_is_finished(scene: Scene, is_running: bool) -> None:
    kill_before_stop(scene)
    if is_running:
        scene.hypervisor.resume(scene.machine.domain)
    (said,) = repair.finish_pending(scene.host, UUID, DOMAIN)
    wanted = DomainState.RUNNING if is_running else DomainState.SHUTOFF
    told = "demo no longer has to be stopped" if is_running else "finished stopping demo"
    assert said == told
    assert scene.hypervisor.state_of(DOMAIN) is wanted
    assert scene.host.catalog.leftovers(UUID) == ()


def test_one_that_runs_on_after_a_killed_stop_is_thawed(scene: Scene) -> None:
    """Its owner had let it run, and its programs hung."""
    request = TakeRequest(domain=DOMAIN, name="x", stop=True, quiesce=True)

    def command(scene: Scene) -> Record:
        return consistency.take(scene.host, request, Silent())

    assert mortal.kill_at(scene, command, "before stop 1")
    scene.hypervisor.resume(scene.machine.domain)
    assert scene.machine.frozen
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert not scene.machine.frozen


@pytest.mark.parametrize("older", [{}, {"run": 1}, {"run": None}], ids=["none", "id", "null"])
def test_a_run_that_a_journal_does_not_tell_of_is_not_stopped(
    scene: Scene, older: dict[str, int | None]
) -> None:
    """As that of an older snapvm: libvirt may have given the id to a later run."""
    record = take(scene)
    scene.machine.domain = replace(scene.machine.domain, run="process 4711 since 5000")
    scene.host.catalog.write_journal(
        UUID, Work.STOP, {"record": record.id, "set": record.set, "boot_id": hostid.boot(), **older}
    )
    scene.hypervisor.suspend(DOMAIN)
    (said,) = repair.finish_pending(scene.host, UUID, DOMAIN)
    assert said == LEFT_STANDING
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("this boot\n")
    monkeypatch.setattr(hostid, "BOOT_PATH", path)
    return path


def kill_before_stop(scene: Scene) -> None:
    """Kill a `take --stop` whose snapshot is whole, and whose domain stands still."""
    assert mortal.kill_at(scene, take_and_stop, "before stop 1")
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID)


def start_paused(scene: Scene) -> None:
    """Start the domain, and have somebody pause it."""
    scene.hypervisor.start(scene.hypervisor.find(DOMAIN), paused=False)
    scene.count(7)
    scene.hypervisor.suspend(DOMAIN)


def test_a_later_run_of_the_domain_is_not_stopped(scene: Scene) -> None:
    kill_before_stop(scene)
    scene.hypervisor.stop(scene.hypervisor.find(DOMAIN))
    start_paused(scene)
    (said,) = repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert said == LEFT_STANDING
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_run_of_a_later_boot_is_not_stopped(scene: Scene, boot: Path) -> None:
    """Numbers of runs begin anew with each boot."""
    kill_before_stop(scene)
    boot.write_text("the next boot\n")
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.host.catalog.leftovers(UUID) == ()


def test_one_that_ended_before_the_kill_is_not_said_to_be_stopped_now(scene: Scene) -> None:
    assert mortal.kill_at(scene, take_and_stop, "after stop 1")
    (said,) = repair.finish_pending(scene.host, UUID, DOMAIN)
    assert said == "demo was to be stopped, and is off already"
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_stop_without_its_record_is_none(scene: Scene) -> None:
    take(scene)
    scene.host.catalog.write_journal(UUID, Work.STOP, {"record": "other", "set": "x"})
    with scene.hypervisor.frozen(scene.machine.domain):
        pass
    (said,) = repair.finish_pending(scene.host, UUID, DOMAIN)
    assert said == "demo no longer has to be stopped"
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
