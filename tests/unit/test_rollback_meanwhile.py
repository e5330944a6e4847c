"""What the domain does changes after a rollback was planned: its image may be read for an hour.

Its guest reboots, as one does that panics over and over: Xen makes another domain of it, and so
does who ends a domain of libvirt's and starts it.  Or its owner pauses it, or lets it run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from snapvm.model import DomainState, Record
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, mend, revive, roll_back

Change = Callable[[Scene], None]
THICK: list[tuple[str, ...]] = [(), ("vg1",), ("vg0", "vg1")]


def reboot(scene: Scene) -> None:
    domain = scene.hypervisor.find(DOMAIN)
    scene.hypervisor.stop(domain)
    scene.hypervisor.start(domain, paused=False)


def let_run(scene: Scene) -> None:
    scene.hypervisor.resume(scene.hypervisor.find(DOMAIN))


def pause(scene: Scene) -> None:
    scene.hypervisor.suspend(DOMAIN)


def roll_back_beside(scene: Scene, record: Record, change: Change) -> None:
    """Roll a domain back, which is paused if its owner is to let it run."""
    hypervisor = scene.hypervisor

    def meanwhile(deed: str) -> None:
        if deed == "check_restore":
            hypervisor.before = lambda _deed: None
            change(scene)

    if change is let_run:
        pause(scene)
    hypervisor.before = meanwhile
    roll_back(scene, record)


@pytest.mark.parametrize("change", [reboot, let_run, pause])
@pytest.mark.parametrize("thick", THICK, ids=str)
def test_its_disks_go_back(tmp_path: Path, thick: tuple[str, ...], change: Change) -> None:
    scene, record = begun(tmp_path, *thick)
    roll_back_beside(scene, record, change)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("thick", THICK, ids=str)
@pytest.mark.parametrize(
    ("change", "state"),
    [
        (reboot, DomainState.RUNNING),
        (let_run, DomainState.RUNNING),
        (pause, DomainState.PAUSED),
    ],
)
def test_a_snapvm_that_is_killed_then_leaves_it_as_its_owner_had_it(
    tmp_path: Path, thick: tuple[str, ...], change: Change, state: DomainState
) -> None:
    """It stood still for good, or was made to run: the journal named what it had done before."""

    def command(scene: Scene) -> None:
        roll_back_beside(scene, record, change)

    (tmp_path / "living").mkdir()
    scene, record = begun(tmp_path / "living", *thick)
    points = mortal.points_of(scene, command)
    begin = points.index("after write .rollback.json 2")
    end = max(n for n, point in enumerate(points) if point.startswith("before stop"))
    for number in range(begin, end + 1):
        (place := tmp_path / str(number)).mkdir()
        scene, record = begun(place, *thick)
        mortal.kill_at(scene, command, number + 1)
        revive(scene)
        mend(scene)
        assert scene.hypervisor.state_of(DOMAIN) is state, points[number]
        assert scene.disk_data() == [str(scene.machine.count)] * 2, points[number]
        assert scene.host.catalog.leftovers(UUID) == (), points[number]
