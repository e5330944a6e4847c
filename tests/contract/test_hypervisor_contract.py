"""What snapvm relies on of a hypervisor; the fake keeps it, and so do the real ones in the lab."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import images
from snapvm.attention import StuckPaused
from snapvm.clock import WindowClock
from snapvm.errors import UnknownDomain
from snapvm.failures import DomainFailed
from snapvm.hypervisor.base import MemoryImage
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind, MemoryRecord, Silent
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings
from tests.contract.worlds import HypervisorWorld, hypervisor_world, wait_until


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervisorWorld]:
    with hypervisor_world(tmp_path_factory.mktemp("hypervisor")) as world:
        yield world


@pytest.fixture
def world(started: HypervisorWorld) -> HypervisorWorld:
    """The domain, running again whatever the test before did."""
    state = state_of(started)
    if state is DomainState.PAUSED:
        started.hypervisor.resume(find(started))
    elif state is DomainState.SHUTOFF:
        started.hypervisor.start(started.last_seen[0], paused=False)
    return started


def find(world: HypervisorWorld) -> Domain:
    domain = world.hypervisor.find(world.name)
    world.last_seen[:] = [domain]
    return domain


def state_of(world: HypervisorWorld) -> DomainState:
    """Return what the domain does; one that is off may be unknown, as it is to xl."""
    try:
        return find(world).state
    except UnknownDomain:
        return DomainState.SHUTOFF


def new_image(world: HypervisorWorld) -> MemoryImage:
    return images.new_image(world.hypervisor.kind, Settings().run_dir)


def capture(world: HypervisorWorld, folder: Path, clock: WindowClock) -> MemoryRecord | None:
    """Capture the domain as consistency does, without volumes."""
    capturing = world.hypervisor.capture(
        find(world), folder, image=new_image(world), clock=clock, progress=Silent()
    )
    with capturing as captured:
        with captured.window():
            assert find(world).state is DomainState.PAUSED
            captured.arm()
        assert find(world).state is DomainState.RUNNING
        return captured.drain()


def test_a_domain_is_found_by_name(world: HypervisorWorld) -> None:
    domain = find(world)
    assert (domain.name, domain.state) == (world.name, DomainState.RUNNING)
    assert domain.memory_bytes > 0 and domain.vcpus > 0
    with pytest.raises(UnknownDomain):
        world.hypervisor.find("no-such-domain")
    assert world.hypervisor.versions(domain)


def test_its_name_is_known_by_its_uuid(world: HypervisorWorld) -> None:
    domain = find(world)
    assert world.hypervisor.name_of(domain.uuid) == world.name
    assert world.hypervisor.name_of(DomainUuid("00000000-0000-4000-8000-00000000dead")) == ""


def test_its_drives_are_block_devices(world: HypervisorWorld) -> None:
    drives = world.hypervisor.drives(find(world))
    assert drives.disks and all(disk.device.is_absolute() for disk in drives.disks)


def test_it_is_booted_with_the_drives_it_was_defined_with(world: HypervisorWorld) -> None:
    domain = find(world)
    booted = world.hypervisor.boots_as(domain)
    assert (booted.name, booted.uuid, booted.state) == (domain.name, domain.uuid, domain.state)
    assert world.hypervisor.drives(booted) == world.hypervisor.drives(domain)


def test_how_it_would_be_captured_is_told(world: HypervisorWorld) -> None:
    assert world.hypervisor.foresee(find(world))
    assert find(world).state is DomainState.RUNNING
    assert find(world).uuid not in world.hypervisor.touched()


def test_a_capture_leaves_it_running_and_gives_a_whole_image(
    world: HypervisorWorld, tmp_path: Path
) -> None:
    clock = WindowClock()
    memory = capture(world, tmp_path, clock)
    assert memory is not None
    image = tmp_path / memory.file
    assert image.stat().st_size == memory.size_bytes
    images.check(image, memory)
    timing = clock.timing()
    assert 0 < timing.pause_ms < timing.total_ms


def test_a_second_capture_right_away_works_too(world: HypervisorWorld, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert capture(world, folder, WindowClock()) is not None


def test_an_error_in_the_window_lets_it_run_again(world: HypervisorWorld, tmp_path: Path) -> None:
    capturing = world.hypervisor.capture(
        find(world), tmp_path, image=new_image(world), clock=WindowClock(), progress=Silent()
    )
    with pytest.raises(ZeroDivisionError), capturing as captured, captured.window():
        raise ZeroDivisionError
    assert find(world).state is DomainState.RUNNING
    folder = tmp_path / "after"
    folder.mkdir()
    assert capture(world, folder, WindowClock()) is not None


def test_one_that_is_given_up_runs_again_soon(world: HypervisorWorld, tmp_path: Path) -> None:
    """A snapshot failed beside it: whatever memory was at, it ends."""
    capturing = world.hypervisor.capture(
        find(world), tmp_path, image=new_image(world), clock=WindowClock(), progress=Silent()
    )
    with pytest.raises(ZeroDivisionError), capturing as captured, captured.window():
        with ThreadPoolExecutor(max_workers=1) as pool:
            armed = pool.submit(captured.arm)
            captured.give_up()
        armed.exception()
        raise ZeroDivisionError
    assert find(world).state is DomainState.RUNNING
    folder = tmp_path / "after"
    folder.mkdir()
    assert capture(world, folder, WindowClock()) is not None


def test_one_that_is_to_be_stopped_stands_still(world: HypervisorWorld, tmp_path: Path) -> None:
    clock = WindowClock()
    capturing = world.hypervisor.capture(
        find(world), tmp_path, image=new_image(world), clock=clock, progress=Silent()
    )
    with capturing as captured:
        with captured.window(leave_standing=True):
            captured.arm()
        memory = captured.drain()
        assert memory is not None
    images.check(tmp_path / memory.file, memory)
    assert find(world).state is DomainState.PAUSED
    world.hypervisor.resume(find(world))
    assert find(world).state is DomainState.RUNNING


def test_a_pause_without_memory(world: HypervisorWorld, tmp_path: Path) -> None:
    capturing = world.hypervisor.capture(
        find(world), tmp_path, image=None, clock=WindowClock(), progress=Silent()
    )
    with capturing as captured:
        with captured.window():
            assert find(world).state is DomainState.PAUSED
        assert captured.drain() is None
    assert find(world).state is DomainState.RUNNING
    assert list(tmp_path.iterdir()) == []


def test_one_that_its_owner_paused_stays_paused(world: HypervisorWorld, tmp_path: Path) -> None:
    if world.hypervisor.kind is HypervisorKind.XEN:
        pytest.skip("a PV guest must run to suspend itself; check_capture refuses it")
    with world.hypervisor.frozen(find(world)):
        pass
    try:
        world.hypervisor.foresee(find(world))
    except DomainRefused as refusal:
        assert "QEMU 7.2" in refusal.why, refusal.why  # Debian 12
        return
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        capturing = world.hypervisor.capture(
            find(world), folder, image=new_image(world), clock=WindowClock(), progress=Silent()
        )
        with capturing as captured:
            with captured.window():
                captured.arm()
            assert captured.drain() is not None
        assert find(world).state is DomainState.PAUSED


def test_frozen_stands_still_and_runs_again_only_when_the_block_fails(
    world: HypervisorWorld,
) -> None:
    with pytest.raises(ZeroDivisionError), world.hypervisor.frozen(find(world)):
        assert find(world).state is DomainState.PAUSED
        raise ZeroDivisionError
    assert find(world).state is DomainState.RUNNING
    with world.hypervisor.frozen(find(world)):
        pass
    assert find(world).state is DomainState.PAUSED


def test_one_that_has_ended_meanwhile_does_not_stand_still(world: HypervisorWorld) -> None:
    """Its guest powered off while clones were made: it was tried to resume it, and in vain."""
    domain = find(world)
    world.hypervisor.stop(domain)
    with (
        pytest.raises(DomainFailed, match="could not be suspended: "),
        world.hypervisor.frozen(domain),
    ):
        pytest.fail("the block ran")
    assert state_of(world) is DomainState.SHUTOFF


@pytest.mark.parametrize("paused", [False, True])
def test_stop_and_restore(world: HypervisorWorld, tmp_path: Path, paused: bool) -> None:
    memory = capture(world, tmp_path, WindowClock())
    assert memory is not None
    domain = find(world)
    image = tmp_path / memory.file
    world.hypervisor.check_restore(domain, image, cookie=images.cookie(image, memory))
    with pytest.raises(DomainFailed, match="could not be restored: "):
        world.hypervisor.restore(domain, image, paused=paused)
    world.hypervisor.stop(domain)
    world.hypervisor.stop(domain)
    assert state_of(world) is DomainState.SHUTOFF
    world.hypervisor.restore(domain, image, paused=paused)
    wanted = DomainState.PAUSED if paused else DomainState.RUNNING
    wait_until(lambda: find(world).state is wanted)


def test_one_that_is_not_known_any_more_can_be_restored(
    world: HypervisorWorld, tmp_path: Path
) -> None:
    """There is no definition to be asked, and the image has all that it needs."""
    memory = capture(world, tmp_path, WindowClock())
    assert memory is not None
    image, known = tmp_path / memory.file, find(world)
    cookie, leaves = images.cookie(image, memory), images.processor(image, memory)
    world.hypervisor.stop(known)
    gone = replace(known, state=DomainState.SHUTOFF, definition="")
    then = world.hypervisor.versions(gone)
    world.hypervisor.check_processor(gone, cookie, leaves, then)
    world.hypervisor.check_restore(gone, image, cookie=cookie)
    world.hypervisor.restore(gone, image, paused=False)
    wait_until(lambda: find(world).state is DomainState.RUNNING)


@pytest.mark.parametrize("paused", [False, True])
def test_stop_and_start(world: HypervisorWorld, paused: bool) -> None:
    domain = find(world)
    assert find(world).run == domain.run is not None
    world.hypervisor.stop(domain)
    world.hypervisor.start(domain, paused=paused)
    again = find(world)
    assert again.state is (DomainState.PAUSED if paused else DomainState.RUNNING)
    assert again.run not in (None, domain.run)


def test_one_that_is_off_cannot_be_resumed(world: HypervisorWorld) -> None:
    """And that is said, also when it ended while it was to stand still."""
    domain = find(world)
    world.hypervisor.stop(domain)
    with pytest.raises(StuckPaused):
        world.hypervisor.resume(domain)


def test_a_guests_agent_freezes_and_thaws(world: HypervisorWorld) -> None:
    agent, domain = world.hypervisor.agent, find(world)
    if world.hypervisor.kind is HypervisorKind.XEN:
        with pytest.raises(DomainRefused):
            agent.check(domain)
        assert not agent.is_expected(domain)
        agent.thaw(domain)
        return
    assert agent.is_expected(domain)

    def answers() -> bool:
        with suppress(DomainRefused):
            agent.check(domain)
            return True
        return False

    wait_until(answers, limit_seconds=60)
    agent.thaw(domain)
    agent.freeze(domain)
    with pytest.raises(DomainRefused):
        agent.check(domain)
    agent.thaw(domain)
    agent.check(domain)
    agent.set_clock(domain)
    assert abs(agent.set_clock(domain)) < 5, "it is right by now"
    with world.hypervisor.frozen(domain):
        pass
    with pytest.raises(DomainRefused):
        agent.check(find(world))
    world.hypervisor.stop(domain)
    agent.thaw(domain)
