"""A domain that its owner pauses while a snapshot is taken of it stays paused."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import hostid
from snapvm.attention import LeftBehind
from snapvm.errors import SnapvmError
from snapvm.failures import CaptureFailed, DomainFailed, PausedMeanwhile
from snapvm.model import DomainState
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import fail_deed, hang, mend, revive, roll_back, take


def pause_at(scene: Scene, deed: str, *, fails: bool = False) -> None:
    """Have the owner pause the domain when snapvm comes to a deed, which may then fail."""

    def before(now: str) -> None:
        if now == deed:
            scene.hypervisor.suspend(DOMAIN)
            if fails:
                raise CaptureFailed(domain=DOMAIN, why="No space left on device")

    scene.hypervisor.before = before


def test_one_that_is_paused_before_its_window_stays_so(scene: Scene) -> None:
    """While stores are made, which takes minutes; what takes the set back does not resume it."""
    before = scene.lvm.names()
    pause_at(scene, "capture")
    with pytest.raises(PausedMeanwhile) as told:
        take(scene)
    assert "can be captured as it is" not in told.value.hint(), "by `background` alone"
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.lvm.names() == before
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("fails", [False, True])
def test_one_that_is_paused_while_memory_streams_out_stays_so(scene: Scene, fails: bool) -> None:
    """A stream that failed then made the domain run again."""
    pause_at(scene, "drain", fails=fails)
    if fails:
        with pytest.raises(SnapvmError):
            take(scene)
    else:
        take(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert len(scene.ids()) == (not fails) and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("deed", ["arm", "drain"])
def test_one_that_is_paused_after_a_take_that_left_something_stays_so(
    scene: Scene, deed: str
) -> None:
    """The next command, which had only to remove a volume, made it run."""
    hang(scene, "lvremove")
    fail_deed(scene, deed)
    with pytest.raises(LeftBehind):
        take(scene)
    revive(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    scene.hypervisor.suspend(DOMAIN)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.host.catalog.leftovers(UUID) == ()


def test_a_take_that_met_its_owners_pause_does_not_forget_whose_it_is(scene: Scene) -> None:
    hang(scene, "lvremove")
    pause_at(scene, "capture")
    with pytest.raises(SnapvmError):
        take(scene)
    revive(scene)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


def test_one_that_is_paused_after_its_window_is_not_let_run_by_who_finds_snapvm_dead(
    scene: Scene,
) -> None:
    """While its memory is written, or read back."""
    assert mortal.kill_at(scene, take, "before commit 1")
    scene.hypervisor.suspend(DOMAIN)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("is_other", [False, True])
def test_only_the_run_that_was_being_captured_is_let_run(scene: Scene, is_other: bool) -> None:
    """The next command made a domain run that was started paused after the kill."""

    assert mortal.kill_at(scene, take, "after suspend 1")
    domain = scene.machine.domain
    if is_other:
        scene.hypervisor.stop(domain)
        scene.hypervisor.start(domain, paused=True)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED
    mend(scene)
    left = DomainState.PAUSED if is_other else DomainState.RUNNING
    assert scene.hypervisor.state_of(DOMAIN) is left
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


def test_a_run_after_a_boot_of_the_host_is_not_let_run(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may then be called as it was before."""
    assert mortal.kill_at(scene, take, "after suspend 1")
    (other := tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(hostid, "BOOT_PATH", other)
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


def test_one_that_ends_before_a_rollback_does_is_left_off(scene: Scene) -> None:
    """It had its disks exchanged below it, as one that was to be ended anyway."""
    scene.count(2)
    record = take(scene)
    scene.count(1)
    before, names = scene.disk_data(), scene.lvm.names()

    def end(deed: str) -> None:
        if deed == "freeze":
            scene.hypervisor.stop(scene.machine.domain)

    scene.hypervisor.before = end
    with pytest.raises(DomainFailed, match="it is off by now"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    assert scene.disk_data() == before and scene.lvm.names() == names
    assert scene.host.catalog.leftovers(UUID) == ()


def test_one_that_is_started_before_a_rollback_ends_it_runs_on(scene: Scene) -> None:
    """It was ended with all that it had done since, though its owner was told that it was off."""
    record = take(scene)
    scene.hypervisor.stop(scene.machine.domain)
    names = scene.lvm.names()

    def begin(deed: str) -> None:
        if deed == "freeze":
            scene.hypervisor.start(scene.machine.domain, paused=False)

    scene.hypervisor.before = begin
    with pytest.raises(DomainFailed, match="it is on by now"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.lvm.names() == names
    assert scene.host.catalog.leftovers(UUID) == ()
