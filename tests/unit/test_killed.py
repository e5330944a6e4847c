"""A snapvm that ends at every command and deed, and one that is interrupted, on fakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from snapvm import consistency, diagnosis, repair, rollbackrepair
from snapvm.attention import LeftBehind, NotStarted, StuckPaused
from snapvm.consistency import TakeRequest
from snapvm.errors import Interrupted, Locked
from snapvm.failures import CommandTimedOut, DomainFailed
from snapvm.interrupt import shielded
from snapvm.model import Domain, DomainState, Silent
from tests.fakes import capture as fake_capture
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import mend, revive, roll_back, take


class Killed(BaseException):
    """As if by SIGKILL: nothing of snapvm runs after it."""


NEVER = 1 << 30


def kill_at(scene: Scene, number: int) -> Callable[[], int]:
    """Make every command and deed from the n-th on end the process, undo steps included.

    Returns what tells how many there were.
    """
    seen = 0

    def strike(_what: object) -> None:
        nonlocal seen
        seen += 1
        if seen >= number:
            raise Killed

    scene.lvm.before = strike
    scene.hypervisor.before = strike
    return lambda: seen


def die_at_each(folder: Path, begin: Callable[[Scene], Callable[[], object]]) -> Iterator[Scene]:
    """Yield a scene for every command and deed of some work, of which it was killed there.

    ``begin`` prepares a scene and returns the work; how much there is, one that lives tells.
    """
    number, total = 0, NEVER
    while number <= total:
        (place := folder / str(number)).mkdir()
        scene = make_scene(place)
        work = begin(scene)
        seen = kill_at(scene, number or NEVER)
        with suppress(BaseException) if number else nullcontext():
            work()
        if number == 0:
            total = seen()
        assert seen() >= number, "it was not killed"
        revive(scene)
        number += 1
        yield scene
    assert number > 8


def test_a_killed_take_is_taken_back_by_the_next_command(tmp_path: Path) -> None:
    def begin(scene: Scene) -> Callable[[], object]:
        scene.count(2)
        return lambda: take(scene)

    for scene in die_at_each(tmp_path, begin):
        assert_taken_back(scene)


def assert_taken_back(scene: Scene) -> None:
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert len(scene.ids()) * 2 == len(scene.lvm.names()) - 4
    tags = {tag for volume in scene.lvm.volumes for tag in volume.tags}
    assert "snapvm.st=new" not in tags
    take(scene)


def test_a_guest_that_was_left_standing_runs_before_anything_is_cleaned_up(scene: Scene) -> None:
    """To end its stream may take a minute, and to remove its volumes minutes."""
    assert mortal.kill_at(scene, take, "after suspend 1")
    states: list[DomainState] = []

    def look(_deed: object) -> None:
        states.append(scene.hypervisor.state_of(DOMAIN))

    look("")
    scene.hypervisor.before = scene.lvm.before = look
    mend(scene)
    assert states[0] is DomainState.PAUSED and set(states[1:]) == {DomainState.RUNNING}


def test_a_guest_whose_writers_were_left_waiting_goes_on(scene: Scene) -> None:
    def quiesced(dying: Scene) -> object:
        request = TakeRequest(domain=DOMAIN, quiesce=True)
        return consistency.take(dying.host, request, Silent())

    assert mortal.kill_at(scene, quiesced, "after suspend 1") and scene.machine.frozen
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and not scene.machine.frozen


def test_a_guest_that_stops_only_when_its_stream_is_ended_runs_again(scene: Scene) -> None:
    """QEMU may have begun ahead of the pause, and come to it when nobody was there any more."""
    kill_at(scene, 4)
    with pytest.raises(Killed):
        take(scene)
    revive(scene)

    def stop_it(deed: str) -> None:
        if deed == "abandon":
            scene.hypervisor.suspend(DOMAIN)

    scene.hypervisor.before = stop_it
    consistency.repair_all(scene.host, None, Silent())
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("named", [None, DOMAIN])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_what_a_killed_doctor_has_set_is_set_back(
    scene: Scene, named: str | None, is_recorded: bool
) -> None:
    """Of a domain without snapshots too: who asks `doctor` may not have taken any yet."""
    if is_recorded:
        take(scene)
    kill_doctor(scene)
    assert scene.hypervisor.touched() == (UUID,)
    done = consistency.repair_all(scene.host, named, Silent())
    assert done == ("reset what a killed snapvm had changed for a capture of demo",)
    assert scene.hypervisor.touched() == ()
    assert consistency.repair_all(scene.host, named, Silent()) == ()


def kill_doctor(scene: Scene) -> None:
    def die(deed: str) -> None:
        if deed == "foresee":
            raise Killed

    scene.hypervisor.before = die
    with pytest.raises(Killed):
        diagnosis.look(scene.host, DOMAIN)
    revive(scene)


def test_what_a_take_at_work_has_set_stays(scene: Scene) -> None:
    kill_doctor(scene)
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked):
        consistency.repair_all(scene.host, None, Silent())
    assert scene.hypervisor.touched() == (UUID,)


def test_of_one_that_nobody_knows_any_more_what_the_host_is_set_to_is_set_back(
    scene: Scene,
) -> None:
    kill_doctor(scene)
    scene.hypervisor.forget(DOMAIN)
    (said,) = consistency.repair_all(scene.host, None, Silent())
    assert said == f"reset what a killed snapvm had changed for a capture of {UUID}"
    assert scene.hypervisor.touched() == ()


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


def test_a_killed_rollback_ends_whole(tmp_path: Path) -> None:
    def begin(scene: Scene) -> Callable[[], object]:
        scene.count(3)
        record = take(scene)
        scene.count(4)
        return lambda: roll_back(scene, record)

    for scene in die_at_each(tmp_path, begin):
        assert_whole(scene)


def assert_whole(scene: Scene) -> None:
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count in (3, 7)
    assert scene.disk_data() == [str(scene.machine.count)] * 2
    tags = {tag for volume in scene.lvm.volumes for tag in volume.tags}
    assert not tags & {"snapvm.st=new", "snapvm.st=roll"}
    assert len(scene.ids()) * 2 == len(scene.lvm.names()) - 4


@pytest.mark.parametrize("point", ["after suspend 1", "before stop 1"])
def test_the_domain_of_a_killed_rollback_runs_before_lvm_is_asked(scene: Scene, point: str) -> None:
    record = take(scene)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), point)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED

    def hang(argv: tuple[str, ...]) -> None:
        raise CommandTimedOut(argv=argv, seconds=1.0)

    scene.lvm.before = hang
    with pytest.raises(LeftBehind):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_an_end_that_a_killed_rollback_left_behind_decides(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt is ending the domain, which stands still for a while yet and does not run again."""
    scene.count(3)
    record = take(scene)
    scene.count(4)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "before stop 1")
    resume, domain = scene.hypervisor.resume, scene.machine.domain

    def too_late(_domain: Domain) -> None:
        raise StuckPaused(domain=DOMAIN, why="it is being ended")

    def end(_seconds: float) -> None:
        scene.hypervisor.stop(domain)
        monkeypatch.setattr(scene.hypervisor, "resume", resume)

    monkeypatch.setattr(scene.hypervisor, "resume", too_late)
    monkeypatch.setattr("snapvm.rollbackrepair.time.sleep", end)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 3 and scene.disk_data() == ["3", "3"]


def test_one_that_neither_runs_nor_ends_needs_attention(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = take(scene)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "before stop 1")

    def refuse(_domain: Domain) -> None:
        raise StuckPaused(domain=DOMAIN, why="because the test says so")

    monkeypatch.setattr(rollbackrepair, "_END_SECONDS", 0.0)
    monkeypatch.setattr(scene.hypervisor, "resume", refuse)
    with pytest.raises(StuckPaused):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID)


def test_a_start_that_a_killed_rollback_left_behind_may_win(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `xl restore` goes on, and is not seen before it has made the domain."""
    record = take(scene)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "before restore 1")
    restore = scene.hypervisor.restore

    def too_late(domain: Domain, image: Path, *, paused: bool, channels: int = 1) -> None:
        restore(domain, image, paused=paused, channels=channels)
        raise DomainFailed(domain=domain.name, deed="restored", why="one of this name runs")

    monkeypatch.setattr(scene.hypervisor, "restore", too_late)
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_half_a_domain_that_a_killed_start_left_is_told_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one that is back; once it is gone the rollback is finished."""
    monkeypatch.setattr(rollbackrepair, "_START_SECONDS", 0.0)
    record = take(scene)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "before restore 1")
    scene.hypervisor.start(scene.hypervisor.find(DOMAIN), paused=True)
    with pytest.raises(NotStarted, match="its start does not finish"):
        repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID)
    scene.hypervisor.stop(scene.hypervisor.find(DOMAIN))
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_one_that_was_started_anew_and_paused_is_not_made_to_run(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "before stop 1")
    scene.hypervisor.stop(scene.hypervisor.find(DOMAIN))
    scene.hypervisor.start(scene.hypervisor.find(DOMAIN), paused=True)
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


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

    monkeypatch.setattr(fake_capture, "shielded", late_shield)
    with pytest.raises(Interrupted):
        consistency.take(scene.host, TakeRequest(domain=DOMAIN, quiesce=quiesce), Silent())
    assert arrived
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert not scene.machine.frozen
    assert scene.ids() == []
    assert not [v for v in scene.lvm.volumes if "snapvm=1" in v.tags]
