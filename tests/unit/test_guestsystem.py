"""What is asked of the system inside a guest: frozen for a take, going on after a rollback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import consistency, guestsystem, recordfile, repair
from snapvm.attention import NotStopped, StillFrozen
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, Interrupted, SnapvmError
from snapvm.failures import CaptureFailed, CommandFailed, NotFrozen
from snapvm.lvm import argv
from snapvm.model import DomainState, Record, Silent
from snapvm.refusals import DomainRefused
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import REFUSAL, die, fail_deed


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = make_scene(tmp_path)
    scene.count(5)
    return scene


def take(scene: Scene, *, stop: bool = False, with_memory: bool = True) -> Record:
    request = TakeRequest(domain=DOMAIN, name="a", quiesce=True, stop=stop, with_memory=with_memory)
    return consistency.take(scene.host, request, Silent())


def roll_back(
    scene: Scene, record: Record, *, paused: bool = False, set_time: bool = True
) -> consistency.RollbackDone:
    return consistency.rollback(
        scene.host, record, paused=paused, progress=Silent(), set_time=set_time
    )


def test_frozen_while_it_stands_still_and_thawed_after(scene: Scene) -> None:
    frozen_at: dict[str, bool] = {}
    scene.hypervisor.before = lambda deed: frozen_at.update({deed: scene.machine.frozen})
    record = take(scene)
    assert record.quiesced
    assert frozen_at["window"] and frozen_at["arm"], "frozen before it stands still"
    assert not frozen_at["capture"] and not frozen_at["drain"], "and no longer than needed"
    assert not scene.machine.frozen
    scene.count(2)
    assert scene.disk_data() == ["7", "7"]


def test_the_record_says_it_only_when_it_was(scene: Scene) -> None:
    record = take(scene)
    assert recordfile.from_dict(recordfile.as_dict(record), "x").quiesced
    plain = consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="b"), Silent())
    assert "quiesced" not in recordfile.as_dict(plain)


def test_after_a_rollback_its_writers_go_on_and_its_clock_is_right(scene: Scene) -> None:
    record = take(scene)
    scene.count(3)
    done = roll_back(scene, record)
    assert not scene.machine.frozen
    assert done.guest.moved_seconds == 3600 and scene.machine.clock_behind_seconds == 0
    scene.count(1)
    assert scene.machine.count == 6 and scene.disk_data() == ["6", "6"]


def test_the_clock_is_left_where_the_user_wants_it(scene: Scene) -> None:
    done = roll_back(scene, take(scene), set_time=False)
    assert done.guest.moved_seconds is None and scene.machine.clock_behind_seconds == 3600
    assert not scene.machine.frozen


def test_a_clock_that_cannot_be_set_is_told_and_fails_nothing(scene: Scene) -> None:
    record = consistency.take(scene.host, TakeRequest(domain=DOMAIN), Silent())
    fail_deed(scene, "ask the agent")
    done = roll_back(scene, record)
    assert done.state is DomainState.RUNNING and done.guest.notes == (str(REFUSAL),)


def test_one_without_an_agent_is_gone_back_to_in_silence(scene: Scene) -> None:
    scene.machine.agent = False
    record = consistency.take(scene.host, TakeRequest(domain=DOMAIN), Silent())
    done = roll_back(scene, record)
    assert done.guest.moved_seconds is None and not done.guest.notes


def test_one_that_stays_paused_says_that_it_is_frozen(scene: Scene) -> None:
    done = roll_back(scene, take(scene), paused=True)
    assert scene.machine.frozen and "virsh domfsthaw demo" in done.guest.notes[0]


def test_what_to_type_has_the_name_as_a_shell_wants_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = take(scene)
    paused = replace(scene.hypervisor.find(DOMAIN), name="my web", state=DomainState.PAUSED)
    monkeypatch.setattr(scene.hypervisor, "find", lambda _name: paused)
    (note,) = guestsystem.awaken(scene.host, record, set_time=True).notes
    assert note.endswith("virsh domfsthaw 'my web'")


def test_disks_alone_boot_and_are_not_frozen(scene: Scene) -> None:
    done = roll_back(scene, take(scene, with_memory=False))
    assert not scene.machine.frozen and not done.guest.notes


def test_refused_without_an_agent_before_anything_is_touched(scene: Scene) -> None:
    scene.machine.agent = False
    with pytest.raises(DomainRefused) as refused:
        take(scene)
    assert refused.value.exit_status is ExitStatus.REFUSED
    assert scene.ids() == [] and not scene.machine.frozen
    assert not any("snapvm=1" in volume.tags for volume in scene.lvm.volumes)


def test_refused_when_somebody_else_has_it_frozen_and_left_so(scene: Scene) -> None:
    scene.machine.frozen = True
    with pytest.raises(DomainRefused, match="frozen already"):
        take(scene)
    assert scene.machine.frozen


@pytest.mark.parametrize("stop", [False, True], ids=["runs on", "stop"])
@pytest.mark.parametrize("deed", ["frozen file systems", "window", "arm", "drain"])
@pytest.mark.parametrize(
    "error",
    [CaptureFailed(domain=DOMAIN, why="a test"), Interrupted(signal="SIGINT")],
    ids=["failure", "interrupted"],
)
def test_thawed_whatever_fails(scene: Scene, deed: str, error: SnapvmError, stop: bool) -> None:
    fail_deed(scene, deed, error)
    with pytest.raises(type(error)):
        take(scene, stop=stop)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert not scene.machine.frozen and scene.ids() == []


def test_thawed_when_it_cannot_be_stopped(scene: Scene) -> None:
    fail_deed(scene, "stop", CaptureFailed(domain=DOMAIN, why="a test"))
    with pytest.raises(NotStopped):
        take(scene, stop=True)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert not scene.machine.frozen and scene.ids() == ["a"]


def test_one_that_cannot_be_stopped_nor_thawed_is_told(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """It ran on, its programs hung, and nothing was said of it."""

    def before(deed: str) -> None:
        if deed == "stop":
            scene.machine.agent = False
            raise CaptureFailed(domain=DOMAIN, why="a test")

    scene.hypervisor.before = before
    with pytest.raises(NotStopped):
        take(scene, stop=True)
    assert "virsh domfsthaw demo" in caplog.text


def test_captured_stopped_and_gone_back_to(scene: Scene) -> None:
    record = take(scene, stop=True)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    roll_back(scene, record)
    assert not scene.machine.frozen


def test_an_agent_that_is_gone_when_it_is_to_freeze_may_have_frozen(scene: Scene) -> None:
    def before(deed: str) -> None:
        if deed == "capture":
            scene.machine.agent = False

    scene.hypervisor.before = before
    with pytest.raises(StillFrozen):
        take(scene)
    assert scene.ids() == [] and scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_one_that_does_not_stay_frozen_is_no_snapshot(scene: Scene) -> None:
    """Windows goes on after 10 s: its disks were recorded as usable alone."""

    def before(deed: str) -> None:
        if deed == "arm":
            scene.machine.frozen = False

    scene.hypervisor.before = before
    with pytest.raises(NotFrozen, match="thawed, by themselves"):
        take(scene)
    assert scene.ids() == [] and scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_guest_that_stays_frozen_needs_attention(scene: Scene) -> None:
    def before(deed: str) -> None:
        if deed == "arm":
            scene.machine.agent = False

    scene.hypervisor.before = before
    with pytest.raises(StillFrozen) as stuck:
        take(scene)
    assert stuck.value.exit_status is ExitStatus.ATTENTION
    assert stuck.value.hint() == "`virsh domfsthaw demo` thaws them"
    assert scene.ids() == []


def test_a_guest_that_comes_back_frozen_needs_attention(scene: Scene) -> None:
    record = take(scene)
    scene.machine.agent = False
    with pytest.raises(StillFrozen):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert [id_ for id_ in scene.ids() if id_.startswith("undo-")], "the rest of it is done"


HAND_OVER = ("lvm", "lvchange")


@pytest.mark.parametrize("is_repair", [False, True], ids=["rollback", "repair"])
def test_a_frozen_guest_needs_attention_where_the_bookkeeping_fails_too(
    scene: Scene, is_repair: bool
) -> None:
    """The status was 7, and nothing told of the guest, whose programs could not write."""
    record = take(scene)
    if is_repair:
        # they are done beside each other
        die(scene, record, ("restore", f"{' '.join(argv.patient(HAND_OVER)[1:])} --deltag"))

    def fail(command: tuple[str, ...]) -> None:
        if "--deltag" in command:
            raise CommandFailed(argv=command, status=5, stderr="in use")

    scene.machine.agent = False
    scene.lvm.before = fail
    with pytest.raises(StillFrozen):
        repair.finish_pending(scene.host, UUID, DOMAIN) if is_repair else roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID), "the rest is left to the next command"
    scene.machine.agent, scene.lvm.before = True, lambda _argv: None
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID) == () and len(scene.ids()) == 2
