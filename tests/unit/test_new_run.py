"""The guest reboots after a rollback was planned, as one does that panics over and over.

Xen makes another domain of it, and so does who ends a domain of libvirt's and starts it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.model import DomainState, Record
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, mend, revive, roll_back


def roll_back_what_reboots(scene: Scene, record: Record) -> None:
    hypervisor = scene.hypervisor

    def reboot(deed: str) -> None:
        if deed == "check_restore":
            hypervisor.before = lambda _deed: None
            domain = hypervisor.find(DOMAIN)
            hypervisor.stop(domain)
            hypervisor.start(domain, paused=False)

    hypervisor.before = reboot
    roll_back(scene, record)


@pytest.mark.parametrize("thick", [(), ("vg1",), ("vg0", "vg1")], ids=str)
def test_its_disks_go_back(tmp_path: Path, thick: tuple[str, ...]) -> None:
    scene, record = begun(tmp_path, *thick)
    roll_back_what_reboots(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("thick", [(), ("vg1",), ("vg0", "vg1")], ids=str)
def test_a_snapvm_that_is_killed_then_leaves_it_running(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """It stood still for good: the journal named the run before, and this one was its owner's."""
    (tmp_path / "living").mkdir()
    scene, record = begun(tmp_path / "living", *thick)
    points = mortal.points_of(scene, lambda scene: roll_back_what_reboots(scene, record))
    for point in points[points.index("before suspend 1") : points.index("after stop 2") + 1]:
        (place := tmp_path / point.replace("/", "-")).mkdir()
        scene, record = begun(place, *thick)
        mortal.kill_at(scene, lambda scene: roll_back_what_reboots(scene, record), point)  # noqa: B023
        revive(scene)
        mend(scene)
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING, point
        assert scene.disk_data() == [str(scene.machine.count)] * 2, point
        assert scene.host.catalog.leftovers(UUID) == (), point
