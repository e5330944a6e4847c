"""What a domain needs is told as that, whoever meets it, and keeps nothing else from working."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapvm import consistency
from snapvm.attention import NotStarted, StillFrozen, StuckPaused
from snapvm.cli import lookup
from snapvm.consistency import TakeRequest
from snapvm.errors import SnapvmError, UnknownDomain
from snapvm.failures import CommandFailed, DomainFailed, saying
from snapvm.model import Domain, DomainState, HypervisorKind, Silent, SnapshotId
from snapvm.refusals import DomainRefused
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import fail_deed, mend, revive, roll_back, take_at_five


class Killed(BaseException):
    """As if by SIGKILL."""


def never_resume(patch: pytest.MonkeyPatch, scene: Scene) -> None:
    def resume(domain: Domain) -> None:
        raise StuckPaused(domain=domain.name, why="it says no")

    patch.setattr(scene.hypervisor, "resume", resume)


def fail_removal(scene: Scene) -> None:
    def before(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove":
            raise CommandFailed(argv=argv, status=5, stderr="in use")

    scene.lvm.before = before


def test_a_domain_that_stays_paused_is_made_to_run_by_the_next_command(scene: Scene) -> None:
    """Found in the lab: all else had been put back, and nothing told of it any more."""
    with pytest.MonkeyPatch.context() as patch:
        never_resume(patch, scene)
        fail_deed(scene, "arm")
        with pytest.raises(StuckPaused):
            consistency.take(scene.host, TakeRequest(domain=DOMAIN), Silent())
        revive(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("stop", [False, True])
def test_one_that_was_held_by_its_stream_runs_once_that_has_ended(scene: Scene, stop: bool) -> None:
    """The window could not make it run; it is told all the same, for it stood still for long.

    Its programs could not write, as nobody had its file systems thawed.
    """
    if stop:
        fail_deed(scene, "arm")
    resume, tried = scene.hypervisor.resume, []

    def held(domain: Domain) -> None:
        tried.append(domain)
        if len(tried) == 1:
            raise StuckPaused(domain=domain.name, why="it waits for its stream")
        resume(domain)

    vars(scene.hypervisor)["resume"] = held
    with pytest.raises(StuckPaused):
        consistency.take(scene.host, TakeRequest(domain=DOMAIN, quiesce=True, stop=stop), Silent())
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert not scene.machine.frozen


@pytest.mark.parametrize("stop", [False, True])
def test_a_domain_that_stays_paused_is_what_a_take_tells(scene: Scene, stop: bool) -> None:
    """And what a repair of it tells; neither hides it behind what could not be removed."""
    request = TakeRequest(domain=DOMAIN, stop=stop)
    before = scene.lvm.names()
    with pytest.MonkeyPatch.context() as patch:
        never_resume(patch, scene)
        fail_removal(scene)
        fail_deed(scene, "drain" if stop else "arm")
        with pytest.raises(StuckPaused):
            consistency.take(scene.host, request, Silent())
        revive(scene)
        for _ in range(2):
            with pytest.raises(StuckPaused, match="it says no"):
                mend(scene)
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_an_image_that_does_not_restore_ends_the_rollback_all_the_same(scene: Scene) -> None:
    """A repair that meets it settles: the next command on the domain works."""
    record = take_at_five(scene)
    fail_deed(scene, "restore", Killed())
    with pytest.raises(Killed):
        roll_back(scene, record)
    assert len(scene.host.catalog.leftovers(UUID)) == 1
    fail_deed(scene, "restore")
    with pytest.raises(NotStarted) as told:
        mend(scene)
    assert f"then: snapvm rollback {record.ref}; or go back" in told.value.hint()
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()
    revive(scene)
    undo = SnapshotId(next(id_ for id_ in scene.ids() if id_ != record.id))
    roll_back(scene, scene.host.catalog.get(UUID, undo))
    assert scene.disk_data() == ["8", "8"]


def test_a_cause_that_nobody_can_fix_leaves_a_way_back(scene: Scene) -> None:
    """A QEMU that was upgraded may never take that memory; only "fix the cause" was said."""
    record = take_at_five(scene)
    why = "Size mismatch: 0000:00:03.0/virtio-net-pci.rom: 0x40000 != 0x80000"
    fail_deed(scene, "restore", DomainFailed(domain=DOMAIN, deed="restored", why=why))
    with pytest.raises(NotStarted, match="Size mismatch") as told:
        roll_back(scene, record)
    assert told.value.hint().endswith(f"; or go back to its former disks: snapvm undo {DOMAIN}")
    roll_back(scene, lookup.newest_undo(scene.host.catalog, DOMAIN))
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["8", "8"]


def test_a_guest_that_a_repair_finds_frozen(scene: Scene) -> None:
    record = take_at_five(scene, quiesce=True)
    fail_deed(scene, "restore", Killed())
    with pytest.raises(Killed):
        roll_back(scene, record)
    revive(scene)
    scene.machine.agent = False
    with pytest.raises(StillFrozen):
        mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert len(scene.ids()) == 2 and scene.host.catalog.leftovers(UUID) == ()


# --- xl forgets a domain that is off --------------------------------------------------------------


@pytest.fixture
def forgotten(scene: Scene) -> Scene:
    """A domain of xl's that was rolled back to disks alone, and did not start."""
    record = take_at_five(scene, with_memory=False)
    scene.hypervisor.forgets = True
    fail_deed(scene, "start")
    with pytest.raises(NotStarted) as told:
        roll_back(scene, record)
    assert told.value.hint().endswith(f"snapvm repair {DOMAIN}")
    assert scene.disk_data() == ["5", "5"] and len(scene.ids()) == 2
    return scene


def test_what_it_was_is_kept_until_it_starts(forgotten: Scene) -> None:
    for _ in range(2):
        with pytest.raises(NotStarted) as told:
            mend(forgotten)
        assert told.value.hint().endswith(f"snapvm repair {DOMAIN}")
    revive(forgotten)
    mend(forgotten)
    assert forgotten.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert forgotten.machine.count == 5
    assert len(forgotten.ids()) == 2 and forgotten.host.catalog.leftovers(UUID) == ()


def test_what_it_was_is_kept_until_its_owner_has_started_it(forgotten: Scene) -> None:
    revive(forgotten)
    known = forgotten.hypervisor.forgotten[DOMAIN].domain
    forgotten.hypervisor.start(known, paused=False)
    forgotten.count(1)
    mend(forgotten)
    assert forgotten.machine.count == 6 and forgotten.disk_data() == ["6", "6"]
    assert len(forgotten.ids()) == 2 and forgotten.host.catalog.leftovers(UUID) == ()


def test_disks_alone_go_back_to_a_domain_of_xls_that_is_off(scene: Scene) -> None:
    """It is the way past a configuration that cannot be told to xl; its owner starts it then."""
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    record = take_at_five(scene, with_memory=False)
    scene.hypervisor.forget(DOMAIN)
    done = roll_back(scene, record)
    assert not done.plan.is_started and DOMAIN not in scene.hypervisor.machines
    assert scene.disk_data() == ["5", "5"] and len(scene.ids()) == 2


def test_one_with_memory_needs_no_definition(scene: Scene) -> None:
    record = take_at_five(scene)
    scene.hypervisor.forgets = True
    fail_deed(scene, "restore")
    with pytest.raises(NotStarted) as told:
        roll_back(scene, record)
    assert f"then: snapvm rollback {record.ref}; or go back" in told.value.hint()
    assert scene.host.catalog.leftovers(UUID) == ()
    revive(scene)
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def advised() -> CommandFailed:
    error = CommandFailed(argv=("lvm",), status=5, stderr="")
    error.remedy = "look there"
    return error


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (CommandFailed(argv=("lvm",), status=5, stderr=""), "all is as it was"),
        (advised(), "look there"),
        (DomainRefused(domain=DOMAIN, why="it says no"), ""),
        (UnknownDomain(DOMAIN), UnknownDomain.remedy),
    ],
)
def test_what_became_of_the_work_is_said_where_it_was_put_back_and_nothing_else_is_said(
    error: SnapvmError, hint: str
) -> None:
    with pytest.raises(type(error)) as raised, saying("all is as it was"):
        raise error
    assert raised.value.hint() == hint
