"""What is to be taken back is what a journal says, and not a damaged one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapvm.attention import LeftBehind
from tests.fakes.scene import UUID, Scene
from tests.unit.deeds import begun, mend, take_half


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain with a snapshot, one of its disks thick."""
    return begun(tmp_path, "vg1")[0]


def everything(scene: Scene) -> list[tuple[str, str, str]]:
    return [(volume.uuid, volume.name, volume.data) for volume in scene.lvm.volumes]


@pytest.mark.parametrize(("key", "value"), [("groups", "vg0"), ("disks", [5]), ("disks", {})])
def test_a_damaged_one_of_a_take_keeps_what_it_names(scene: Scene, key: str, value: object) -> None:
    """Groups that were a text were looked for letter by letter, and its volumes left behind."""
    take_half(scene, "half")
    before = everything(scene)
    (left,) = scene.host.catalog.leftovers(UUID)
    path = left.path / "intent.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "disks": [], key: value}))
    with pytest.raises(LeftBehind, match="its journal is damaged"):
        mend(scene)
    assert everything(scene) == before and path.exists()
