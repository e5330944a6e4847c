"""One of xl's that is created anew, and has another uuid: the same machine to whoever works on it.

To libvirt a domain of another uuid is another domain.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency
from snapvm.attention import StartedTooSoon
from snapvm.consistency import TakeRequest
from snapvm.errors import Locked, UnknownDomain
from snapvm.model import DomainState, DomainUuid, HypervisorKind, Record, Silent
from snapvm.recordfolder import Work, hidden_folder
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import hang, roll_back, take, take_at_five
from tests.unit.occupied import attach

NEW_UUID = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")


def begun(folder: Path, kind: HypervisorKind, *thick: str) -> tuple[Scene, Record]:
    """Make a scene whose domain is created anew after a snapshot of five."""
    scene = make_scene(folder, thick=thick)
    scene.hypervisor.kind = kind
    scene.machine.domain = replace(scene.machine.domain, hypervisor=kind)
    record = take_at_five(scene)
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    return scene, record


@pytest.fixture
def few_files() -> Iterator[None]:
    """Let few files be open at once, that not so many uuids are needed for too many of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("work", ["take", "rollback", "delete"])
@pytest.mark.parametrize("busy", [UUID, NEW_UUID])
def test_a_second_snapvm_is_kept_out_whatever_uuid_it_has(
    tmp_path: Path, work: str, busy: DomainUuid
) -> None:
    scene, record = begun(tmp_path, HypervisorKind.XEN)
    take(scene, "anew")
    with scene.host.catalog.locked(busy, DOMAIN), pytest.raises(Locked):
        if work == "take":
            take(scene)
        elif work == "rollback":
            roll_back(scene, record)
        else:
            consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [record.id] and scene.ids(NEW_UUID) == ["anew"]


def test_it_goes_back_though_it_has_got_another_disk(tmp_path: Path) -> None:
    """It was "another domain", and none of its snapshots of before could be gone back to."""
    scene, record = begun(tmp_path, HypervisorKind.XEN)
    attach(scene)
    scene.count(2)
    roll_back(scene, record)
    assert scene.machine.count == 5


class Watched:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        pass


@pytest.mark.parametrize("work", ["take", "rollback", "delete"])
def test_who_waits_for_another_sees_it(scene: Scene, work: str) -> None:
    """`--wait` showed that it was checking for ten minutes, and `delete --wait` nothing."""
    record, progress = take_at_five(scene), Watched()
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked):
        if work == "take":
            consistency.take(scene.host, TakeRequest(domain=DOMAIN), progress)
        elif work == "rollback":
            consistency.rollback(scene.host, record, paused=False, progress=progress)
        else:
            consistency.delete(scene.host, [record], progress)
    assert progress.phases[-1] == "waiting for the lock of demo"


def test_another_domain_of_libvirts_is_not_waited_for(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, HypervisorKind.LIBVIRT)
    with scene.host.catalog.locked(UUID, DOMAIN):
        take(scene, "anew")
    with scene.host.catalog.locked(NEW_UUID, DOMAIN):
        consistency.delete(scene.host, [record], Silent())


def start_anew(scene: Scene) -> None:
    """Do what `xl create` does, after a rollback was killed."""
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    scene.hypervisor.start(scene.machine.domain, paused=False)


def test_a_rollback_that_was_killed_is_finished_by_a_take_of_the_domain_anew(
    tmp_path: Path,
) -> None:
    scene, record = begun(tmp_path, HypervisorKind.XEN)
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "before restore 1")
    start_anew(scene)
    take(scene, "anew")
    assert scene.host.catalog.leftovers(UUID) == ()
    assert len(scene.ids()) == 2, "what was current is kept"


def test_disks_that_it_had_half_written_back_are_not_taken(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, HypervisorKind.XEN, "vg0", "vg1")
    assert mortal.kill_at(scene, lambda killed: roll_back(killed, record), "after copy back 1")
    start_anew(scene)
    with pytest.raises(StartedTooSoon):
        take(scene, "anew")
    assert scene.ids(NEW_UUID) == []


def off_since_its_disks_were_taken(folder: Path, *thick: str) -> tuple[Scene, Record]:
    """Make a scene whose domain, of which xl knows nothing, was captured without memory."""
    scene = make_scene(folder, thick=thick)
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    scene.count(5)
    request = consistency.TakeRequest(domain=DOMAIN, with_memory=False)
    record = consistency.take(scene.host, request, Silent())
    scene.count(2)
    scene.hypervisor.forget(DOMAIN)
    return scene, record


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_disks_go_back_under_one_that_is_off(tmp_path: Path, thick: tuple[str, ...]) -> None:
    """The upgrade broke it: xl knows it no more, and the answer was that there is none."""
    scene, record = off_since_its_disks_were_taken(tmp_path, *thick)
    done = roll_back(scene, record)
    assert done.state is DomainState.SHUTOFF
    assert scene.disk_data() == ["5", "5"]
    roll_back(scene, done.undo)
    assert scene.disk_data() == ["7", "7"]


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_that_is_finished_or_taken_back_when_it_is_killed(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    def make(number: int) -> tuple[Scene, mortal.Command]:
        folder = tmp_path / str(number)
        folder.mkdir()
        scene, record = off_since_its_disks_were_taken(folder, *thick)
        return scene, lambda killed: roll_back(killed, record)

    points = mortal.points_of(*make(0))
    assert len(points) > 10
    for number, point in enumerate(points, 1):
        scene, command = make(number)
        assert mortal.kill_at(scene, command, point)
        consistency.repair_all(scene.host, None, Silent())
        assert scene.host.catalog.leftovers(UUID) == ()
        assert scene.disk_data() in (["5", "5"], ["7", "7"]), point


def killed_and_renamed(scene: Scene, command: mortal.Command, point: str) -> None:
    """Kill a command on a domain of xl's, which then gets another name."""
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    assert mortal.kill_at(scene, command, point)
    scene.hypervisor.rename(DOMAIN, "renamed")


@pytest.mark.parametrize("named", [DOMAIN, "renamed", UUID, None])
def test_a_take_that_was_killed_is_taken_back_under_another_name(
    tmp_path: Path, named: str | None
) -> None:
    scene = make_scene(tmp_path)
    before = scene.lvm.names()
    killed_and_renamed(scene, take, "after suspend 1")
    assert scene.hypervisor.state_of("renamed") is DomainState.PAUSED
    assert checking.look(scene.host, named, Silent(), deep=False)
    done = consistency.repair_all(scene.host, named, Silent())
    assert len(done) == 1 and "took back the unfinished snapshot demo@" in done[0]
    assert scene.hypervisor.state_of("renamed") is DomainState.RUNNING
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()
    assert not checking.look(scene.host, named, Silent(), deep=False)


def test_another_that_has_the_old_name_is_left_alone(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    killed_and_renamed(scene, take, "after suspend 1")
    other = replace(
        scene.hypervisor.find("renamed"), name=DOMAIN, uuid=NEW_UUID, state=DomainState.PAUSED
    )
    scene.hypervisor.add(other, ())
    consistency.repair_all(scene.host, "renamed", Silent())
    assert scene.hypervisor.state_of("renamed") is DomainState.RUNNING
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


def test_a_stop_that_was_killed_is_finished_under_another_name(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    request = consistency.TakeRequest(domain=DOMAIN, name="x", stop=True)
    killed_and_renamed(
        scene, lambda killed: consistency.take(killed.host, request, Silent()), "before stop 1"
    )
    assert consistency.repair_all(scene.host, "renamed", Silent())[0] == "finished stopping renamed"
    assert scene.hypervisor.state_of("renamed") is DomainState.SHUTOFF


@pytest.mark.parametrize("point", ["after suspend 1", "before restore 1", "after restore 1"])
@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_a_rollback_that_was_killed_is_ended_under_another_name(
    tmp_path: Path, point: str, thick: tuple[str, ...]
) -> None:
    scene = make_scene(tmp_path, thick=thick)
    record = take_at_five(scene)
    killed_and_renamed(scene, lambda killed: roll_back(killed, record), point)
    consistency.repair_all(scene.host, "renamed", Silent())
    assert scene.hypervisor.state_of("renamed") is DomainState.RUNNING
    assert scene.disk_data() == (["8", "8"] if "suspend" in point else ["5", "5"])
    assert scene.host.catalog.leftovers(UUID) == ()


def test_one_that_nobody_knows_is_unknown(scene: Scene) -> None:
    take(scene)
    with pytest.raises(UnknownDomain):
        consistency.repair_all(scene.host, "other", Silent())
    with pytest.raises(UnknownDomain):
        checking.look(scene.host, "other", Silent(), deep=False)


def test_one_that_was_created_anew_for_years_needs_no_files_for_what_is_gone(
    tmp_path: Path, few_files: None
) -> None:
    """Each night a test machine is created, captured, and its snapshot of the night before deleted.

    After some five hundred nights no command could open the locks of all the uuids it had had.
    """
    scene, record = begun(tmp_path, HypervisorKind.XEN)
    for night in range(40):
        uuid = DomainUuid(f"{NEW_UUID[:-2]}{night:02x}")
        scene.machine.domain = replace(scene.machine.domain, uuid=uuid)
        consistency.delete(scene.host, [record], Silent())
        record = take(scene, "nightly")
    assert scene.ids(uuid) == ["nightly"]


def test_what_a_former_uuid_left_unfinished_is_still_finished(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, HypervisorKind.XEN)
    folder = scene.host.catalog.folder(UUID, record.id)
    folder.rename(folder.with_name(hidden_folder(record.id, Work.DELETE)))
    take(scene, "anew")
    assert scene.host.catalog.leftovers(UUID) == ()
    assert not {str(disk.snapshot) for disk in record.disks} & scene.lvm.names()


def test_to_repair_what_has_no_snapshots_any_more_needs_no_lvm(tmp_path: Path) -> None:
    """For each of the uuids of years LVM was asked for all volumes, at each boot of the host."""
    scene, record = begun(tmp_path, HypervisorKind.XEN)
    consistency.delete(scene.host, [record], Silent())
    hang(scene, "lvs", "fullreport")
    assert consistency.repair_all(scene.host, UUID, Silent()) == ()
