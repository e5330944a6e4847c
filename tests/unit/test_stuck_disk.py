"""An lvm that is killed in its critical section leaves a guest's disk suspended (lvmteam/lvm2#75).

As by the kernel for want of memory, or by systemd, which kills a whole unit: the guest runs on, and
nothing that it writes comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snapvm.attention import LeftBehind
from snapvm.errors import SnapvmError
from snapvm.failures import CommandFailed
from snapvm.lvm import device
from snapvm.model import DomainState
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.mortal import kill
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.unit.deeds import delete, mend, revive, roll_back, take

_SUSPENDING = ("lvcreate", "lvconvert", "lvrename")


def strike(scene: Scene, number: int, die: Callable[[], None]) -> None:
    """Have an lvm die that has suspended a disk of the domain: the n-th of those that do."""
    left = iter(range(number - 1, -1, -1))

    def after(argv: tuple[str, ...]) -> None:
        for volume in scene.machine.held:
            names = {volume.vg, volume.name} if argv[1] == "lvrename" else {_path(volume)}
            if argv[1] in _SUSPENDING and names <= set(argv) and next(left, None) == 0:
                volume.suspended = True
                die()

    scene.lvm.after = after


def _path(volume: FakeVolume) -> str:
    return f"{volume.vg}/{volume.name}"


def die_alone() -> None:
    raise CommandFailed(argv=("lvm",), status=-9, stderr="killed")


def begin(scene: Scene, work: str) -> Callable[[Scene], object]:
    record = take(scene, "a")
    scene.count(2)
    if work == "take":
        return lambda there: take(there, "b")
    return lambda there: roll_back(there, record)


def assert_it_writes(scene: Scene) -> None:
    assert not any(volume.suspended for volume in scene.machine.held)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    scene.count(1)
    assert scene.disk_data() == ["3", "3"] and scene.ids() == ["a"]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("work", ["take", "rollback"])
def test_the_guest_writes_again_when_what_failed_is_put_back(
    scene: Scene, work: str, number: int
) -> None:
    command = begin(scene, work)
    strike(scene, number, die_alone)
    with pytest.raises(SnapvmError, match="killed"):
        command(scene)
    assert_it_writes(scene)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("work", ["take", "rollback"])
def test_it_does_when_snapvm_died_with_it_and_is_looked_after(
    scene: Scene, work: str, number: int
) -> None:
    command = begin(scene, work)

    def work_until(there: Scene, die: Callable[[], None]) -> None:
        strike(there, number, die)
        command(there)

    assert kill(scene, work_until)
    revive(scene)
    assert any(volume.suspended for volume in scene.machine.held)
    mend(scene)
    assert_it_writes(scene)


@pytest.mark.parametrize("locked_seconds", [0.0, 100.0])
def test_it_does_before_memory_is_given_up(
    scene: Scene, locked_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU, which flushes the disks, hears nothing until then: the domain stood still for good.

    But where the group stays locked the domain is not kept standing for that.
    """

    def is_suspended(path: Path) -> bool:
        return scene.lvm.under(path.parent.name, path.name).suspended

    def die_and_leave_the_group_locked() -> None:
        scene.lvm.busy_seconds = locked_seconds
        die_alone()

    seen: list[bool] = []

    def arming(given_up: threading.Event) -> None:
        assert given_up.wait(20)
        scene.lvm.busy_seconds = 0.0
        seen.append(any(volume.suspended for volume in scene.machine.held))

    monkeypatch.setattr(device, "is_suspended", is_suspended)
    scene.hypervisor.arming = arming
    strike(scene, 1, die_and_leave_the_group_locked)
    with pytest.raises(SnapvmError, match="killed"):
        take(scene)
    assert seen == [locked_seconds > 0]
    assert not any(volume.suspended for volume in scene.machine.held)


def test_it_does_when_an_lvm_died_that_removed_a_snapshot_of_the_disk(tmp_path: Path) -> None:
    """It is gone then, and nothing of it remains to be removed."""
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    take(scene, "a")
    gone = take(scene, "b")
    scene.count(2)

    def after(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove":
            scene.lvm.named("vg0", "demo-d0").suspended = True
            die_alone()

    scene.lvm.after = after
    with pytest.raises(LeftBehind):
        delete(scene, gone)
    revive(scene)
    mend(scene)
    assert_it_writes(scene)


@pytest.mark.parametrize(("said", "it_is"), [("1\n", True), ("0\n", False), (None, False)])
def test_the_kernel_tells_of_a_device_that_is_suspended(
    tmp_path: Path, said: str | None, it_is: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "number", lambda path: (253, 31) if path.name == "web" else None)
    (tmp_path / "253:31" / "dm").mkdir(parents=True)
    if said is not None:
        (tmp_path / "253:31" / "dm" / "suspended").write_text(said)
    assert device.is_suspended(Path("/dev/vg0/web"), tmp_path) is it_is
    assert not device.is_suspended(Path("/dev/vg0/gone"), tmp_path)
