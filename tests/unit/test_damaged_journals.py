"""What is to be finished is what a journal says: an older snapvm's too, and not a damaged one's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from snapvm import consistency, recordfolder
from snapvm.attention import JournalUnusable, LeftBehind
from snapvm.model import DomainState, Silent, SnapshotId
from snapvm.recordfolder import Work
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, journal, mend, roll_back, take_half

DAMAGES: dict[str, tuple[str, Any]] = {
    "no object for a disk": ("disks", [5]),
    "a text for the disks": ("disks", "vg0/demo-d0"),
    "a count too few": ("written", [1]),
    "a count that is none": ("written", [1, "2"]),
    "an option for a set": ("set", "--all"),
    "a phase that there is not": ("phase", "PREPARE"),
}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain with a snapshot, one of its disks thick."""
    return begun(tmp_path, "vg1")[0]


def go_back(scene: Scene) -> object:
    return roll_back(scene, scene.host.catalog.get(UUID, SnapshotId("x")))


@pytest.mark.parametrize(
    ("point", "data"),
    [("after suspend 1", "8"), ("after stop 1", "5"), ("before restore 1", "5")],
)
def test_one_that_an_older_snapvm_left_is_finished(scene: Scene, point: str, data: str) -> None:
    assert mortal.kill_at(scene, go_back, point)
    said = journal(scene, Work.ROLLBACK)
    for key in ("boot_id", "run", "set_time", "definition", "written"):
        said.pop(key, None)
    for disk in said["disks"]:
        for key in ("vg_uuid", "not_at_boot", "skipped"):
            del disk[key]
    scene.host.catalog.write_journal(UUID, Work.ROLLBACK, said)
    mend(scene)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == [data, data] and str(scene.machine.count) == data


def everything(scene: Scene) -> list[tuple[str, str, str]]:
    return [(volume.uuid, volume.name, volume.data) for volume in scene.lvm.volumes]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_of_a_rollback_is_told_of_and_nothing_is_done(scene: Scene, how: str) -> None:
    """Of some it was said that there is a bug in snapvm."""
    assert mortal.kill_at(scene, go_back, "after stop 1")
    said, before = journal(scene, Work.ROLLBACK), everything(scene)
    key, value = DAMAGES[how]
    scene.host.catalog.write_journal(UUID, Work.ROLLBACK, {**said, key: value})
    with pytest.raises(LeftBehind, match="its journal is damaged") as told:
        mend(scene)
    assert "move the journal" in told.value.hint(), "to repair again would not help"
    assert everything(scene) == before and journal(scene, Work.ROLLBACK)[key] == value


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "thik"), ("tags", "backup"), ("not_at_boot", "no")]
)
def test_nothing_is_done_for_a_disk_that_is_not_told_of_as_disks_are(
    scene: Scene, key: str, value: str
) -> None:
    """A thick disk of an unknown kind was not written back, and said to be the snapshot's."""
    assert mortal.kill_at(scene, go_back, "after stop 1")
    said, before = journal(scene, Work.ROLLBACK), everything(scene)
    said["disks"][1][key] = value
    scene.host.catalog.write_journal(UUID, Work.ROLLBACK, {**said, "phase": "swapped"})
    with pytest.raises(LeftBehind, match="its journal is damaged"):
        mend(scene)
    assert everything(scene) == before
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF


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


@pytest.mark.parametrize("name", ["intent.json", "snapshot.json"])
def test_to_take_over_what_is_another_hosts_is_not_to_guess(scene: Scene, name: str) -> None:
    """Of a journal that cannot be read nobody knows whose it is, or which volumes it names."""
    folder = scene.host.catalog.folder(UUID, SnapshotId("x")).parent
    work = Work.TAKE if name == "intent.json" else Work.DELETE
    path = folder / recordfolder.hidden_folder("half", work) / name
    path.parent.mkdir()
    path.write_text("[1")
    before = everything(scene)
    with pytest.raises(JournalUnusable):
        consistency.repair_all(scene.host, DOMAIN, Silent(), take_over=True)
    assert everything(scene) == before and path.exists()
