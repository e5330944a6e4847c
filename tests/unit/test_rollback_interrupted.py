"""Ctrl-C at every effect of a rollback: it is as before, or it is done; nothing is between."""

from __future__ import annotations

from pathlib import Path

from snapvm.model import DomainState
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, roll_back


def test_a_domain_runs_and_nothing_is_left_wherever_it_comes(tmp_path: Path) -> None:
    def scene_at(number: int) -> tuple[Scene, mortal.Command]:
        (folder := tmp_path / str(number)).mkdir()
        scene, record = begun(folder, "vg1")
        return scene, lambda scene: roll_back(scene, record)

    points = mortal.points_of(*scene_at(0))
    assert len(points) > 8
    for number, point in enumerate(points, 1):
        scene, command = scene_at(number)
        before = scene.lvm.names()
        how = mortal.interrupt_at(scene, command, point)
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING, point
        assert scene.host.catalog.leftovers(UUID) == (), point
        assert (scene.lvm.names() == before) is (how == "interrupted"), (point, how)
        assert len(scene.ids()) == (1 if how == "interrupted" else 2), (point, how)
