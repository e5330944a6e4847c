"""Two snapvm at once on one domain: one works, the other waits or is told who does.

Real processes and real locks, on the fakes.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import consistency, turns
from snapvm.catalog import Catalog
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, Locked, SnapvmError
from snapvm.interrupt import watched
from snapvm.model import DomainUuid, GuestDisk, Silent, SnapshotId
from tests.fakes.scene import UUID, Scene, make_scene
from tests.unit.deeds import take

LIMIT_SECONDS = 20.0
FAILED_OTHERWISE = 99


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain with a snapshot."""
    made = make_scene(tmp_path)
    take(made, "kept")
    return made


def roll_back(scene: Scene) -> object:
    record = scene.host.catalog.get(UUID, SnapshotId("kept"))
    return consistency.rollback(scene.host, record, paused=False, progress=Silent())


def waiting(scene: Scene, seconds: float) -> Scene:
    """Return the host as `--wait` leaves it: whose catalog is patient."""
    settings = scene.host.settings
    catalog = Catalog(settings.state_dir, settings.run_dir, wait_seconds=seconds)
    return replace(scene, host=replace(scene.host, catalog=catalog))


class Other:
    """Another process, forked in the middle of what it does."""

    def __init__(self, pid: int, go: int) -> None:
        self.pid = pid
        self._go = go

    def go_on(self) -> None:
        """Let it end what it has begun."""
        os.write(self._go, b"x")

    def status(self) -> int:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


@contextmanager
def another(scene: Scene, command: Callable[[], object], deed: str) -> Iterator[Other]:
    """Have another process that carries out a command and has come to a deed of it."""
    came, come = os.pipe()
    wait, go = os.pipe()

    def at(name: str) -> None:
        if name == deed:
            os.write(come, b"x")
            os.read(wait, 1)

    pid = os.fork()
    if pid == 0:
        status = FAILED_OTHERWISE
        try:
            os.close(go)  # it goes on too when a test that failed has closed the other end
            os.setpgid(0, 0)
            scene.hypervisor.before = at
            status = _ended(command)
        finally:
            os._exit(status)
    os.close(come)
    try:
        assert os.read(came, 1) == b"x", f"it never came to {deed}"
        yield Other(pid, go)
    finally:
        for descriptor in (came, wait, go):
            os.close(descriptor)


def _ended(command: Callable[[], object]) -> int:
    """Return the status with which the command line would end."""
    try:
        with watched():
            command()
    except SnapvmError as error:
        return int(error.exit_status)
    return 0


def test_the_second_take_is_told_who_works(scene: Scene) -> None:
    with another(scene, lambda: take(scene, "first"), "window") as other:
        with pytest.raises(Locked) as refused:
            take(scene, "second")
        assert refused.value.exit_status is ExitStatus.LOCKED
        assert str(other.pid) in str(refused.value)
        other.go_on()
        assert other.status() == 0
    assert set(scene.ids()) == {"kept", "first"}


@pytest.mark.parametrize("deed", ["freeze", "stop"])
def test_a_take_during_a_rollback(scene: Scene, deed: str) -> None:
    with another(scene, lambda: roll_back(scene), deed) as other:
        with pytest.raises(Locked):
            take(scene, "second")
        assert "second" not in scene.ids()
        other.go_on()
        assert other.status() == 0


def test_the_second_waits_when_it_was_told_to(scene: Scene) -> None:
    patient = waiting(scene, LIMIT_SECONDS)
    with another(scene, lambda: take(scene, "first"), "window") as first:
        second = os.fork()
        if second == 0:
            status = FAILED_OTHERWISE
            try:
                status = _ended(lambda: take(patient, "second"))
            finally:
                os._exit(status)
        time.sleep(0.3)
        assert "second" not in scene.ids()
        first.go_on()
        assert first.status() == 0
    assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 0
    assert set(scene.ids()) == {"kept", "first", "second"}


def add_another(scene: Scene) -> None:
    """Add a domain whose only disk is in a group of the first one's."""
    disk = scene.lvm.add_disk("vg0", "other-d0", pool="pool", data="0")
    uuid = DomainUuid("22222222-2222-3333-4444-555555555555")
    domain = replace(scene.machine.domain, name="other", uuid=uuid)
    scene.hypervisor.add(domain, (GuestDisk(target="vda", device=Path("/dev/vg0", disk.name)),))


def test_another_domain_runs_until_it_is_its_turn_in_the_group(scene: Scene) -> None:
    """Not the lock of a domain is waited for, but that of LVM would be, in the pause."""
    add_another(scene)
    came, come = os.pipe()

    def tell(deed: str) -> None:
        os.write(come, f"{deed} ".encode())

    with another(scene, lambda: take(scene, "first"), "window") as first:
        second = os.fork()
        if second == 0:
            status = FAILED_OTHERWISE
            try:
                scene.hypervisor.before = tell
                request = TakeRequest(domain="other", name="second")
                status = _ended(lambda: consistency.take(scene.host, request, Silent()))
            finally:
                os._exit(status)
        told = b""
        while not told.endswith(b" capture "):
            told += os.read(came, 100)
        time.sleep(0.5)
        assert told == b"check_capture capture " and not select.select([came], [], [], 0)[0]
        first.go_on()
        assert first.status() == 0
    assert os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]) == 0
    assert os.read(came, 100).startswith(b"window ")
    os.close(came)
    os.close(come)


def test_one_that_waits_for_its_turn_can_be_given_up(scene: Scene) -> None:
    with (
        turns.taken(scene.host.settings.run_dir, ["vg0"]),
        another(scene, lambda: take(scene, "first"), "capture") as other,
    ):
        other.go_on()
        time.sleep(0.5)
        os.killpg(other.pid, signal.SIGTERM)
        assert other.status() == ExitStatus.INTERRUPTED
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.ids() == ["kept"]


def test_its_patience_ends(scene: Scene) -> None:
    patient = waiting(scene, 0.3)
    with another(scene, lambda: take(scene, "first"), "window") as other:
        with pytest.raises(Locked):
            take(patient, "second")
        other.go_on()
        assert other.status() == 0


def test_a_scheduler_ends_the_group(scene: Scene) -> None:
    """SIGTERM in the window: interrupted, all put back, and the next one finds no lock."""
    with another(scene, lambda: take(scene, "first"), "window") as other:
        os.killpg(other.pid, signal.SIGTERM)
        assert other.status() == ExitStatus.INTERRUPTED
    assert scene.host.catalog.leftovers(UUID) == ()
    take(scene, "second")
    assert set(scene.ids()) == {"kept", "second"}


def test_a_scheduler_that_does_not_ask(scene: Scene) -> None:
    """SIGKILL: the kernel drops the lock, and the next command takes back what was begun."""
    with another(scene, lambda: take(scene, "first"), "window") as other:
        os.killpg(other.pid, signal.SIGKILL)
        assert other.status() == -signal.SIGKILL
    assert len(scene.host.catalog.leftovers(UUID)) == 1
    take(scene, "second")
    assert set(scene.ids()) == {"kept", "second"}
    assert scene.host.catalog.leftovers(UUID) == ()
