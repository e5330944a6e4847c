"""Disks whose names leave no room: what is taken of them is rolled back to, or nothing is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import consistency
from snapvm.consistency import TakeRequest
from snapvm.lvm import newname
from snapvm.model import GuestDisk, Silent
from snapvm.refusals import VolumeRefused
from tests.fakes.scene import DOMAIN, Scene, make_scene

GROUP = "cinder-volumes-fast-ssd-a"
STEM = "volume-8c8a2f0e-8a3b-4d6f-9e21-0c7a4b5d6e7f-web-frontend-root"
"""As OpenStack names them: 103 characters to device-mapper, which has 127."""


def make_long(folder: Path, group: str = GROUP, *, thick: bool = False) -> Scene:
    """Let the domain have two disks in one group, their long names alike but for the end."""
    scene = make_scene(folder, thick=("vg0", "vg1") if thick else ())
    disks = []
    scene.lvm.add_pool(group)
    for target, end in (("vda", "x"), ("vdb", "y")):
        name = f"{STEM}-{end}"
        scene.lvm.add_disk(group, name, pool="" if thick else "pool", data="0")
        disks.append(GuestDisk(target=target, device=Path("/dev", group, name)))
    scene.hypervisor.add(scene.machine.domain, tuple(disks))
    return scene


def data(scene: Scene, group: str = GROUP) -> list[str]:
    return [scene.lvm.named(group, f"{STEM}-{end}").data for end in "xy"]


@pytest.mark.parametrize("thick", [False, True])
@pytest.mark.parametrize("name", [None, "before-the-upgrade-of-the-database"])
def test_long_names_are_rolled_back(tmp_path: Path, name: str | None, thick: bool) -> None:
    scene = make_long(tmp_path, thick=thick)
    scene.count(3)
    record = consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=name), Silent())
    for _ in range(2):
        scene.count(4)
        undo = consistency.rollback(scene.host, record, paused=False, progress=Silent()).undo
        assert data(scene) == ["3", "3"]
    consistency.rollback(scene.host, undo, paused=False, progress=Silent())
    assert data(scene) == ["7", "7"]


def test_what_could_never_be_rolled_back_is_not_taken(tmp_path: Path) -> None:
    scene = make_long(tmp_path, "g" * 110)
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match="longer than device-mapper allows"):
        consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="a"), Silent())
    assert scene.lvm.names() == before and scene.ids() == []


def test_two_volumes_never_get_one_name() -> None:
    newname.require_distinct([])
    newname.require_distinct([("vg0", "a"), ("vg1", "a"), ("vg0", "b")])
    with pytest.raises(VolumeRefused, match="vg0/a"):
        newname.require_distinct([("vg0", "a"), ("vg0", "b"), ("vg0", "a")])
