"""A state folder that came back from a backup has the journal of a rollback of long ago."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapvm import hostid
from snapvm.attention import LeftBehind
from snapvm.catalog import Catalog
from snapvm.model import DomainState, DomainUuid, GuestDisk, SnapshotId
from snapvm.recordfolder import Work
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, delete, mend, roll_back, use

NOT_BACK = ("prepare", "exchanged", "swapped")
"""The phases of a rollback whose disks are not all back."""
BACK = ("restored", "started")
THICK = {"thin": (), "mixed": ("vg1",), "thick": ("vg0", "vg1")}


@dataclass
class LongAfter:
    """A rollback has ended, and the domain was used since; it is off."""

    scene: Scene
    journals: dict[str, bytes]
    """What its journal was, for each phase."""

    @property
    def journal(self) -> Path:
        return self.scene.host.settings.state_dir / "domains" / UUID / ".rollback.json"

    def come_back(self, phase: str) -> None:
        self.journal.write_bytes(self.journals[phase])


@pytest.fixture(params=THICK)
def long_after(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> LongAfter:
    scene, record = begun(tmp_path, *THICK[request.param])
    after = LongAfter(scene, {})
    write = Catalog.write_journal

    def keeping(catalog: Catalog, uuid: DomainUuid, work: Work, intent: dict[str, Any]) -> None:
        write(catalog, uuid, work, intent)
        after.journals[intent["phase"]] = after.journal.read_bytes()

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "write_journal", keeping)
        roll_back(scene, record)
    use(scene)
    assert scene.disk_data() == ["7", "7"]
    return after


@pytest.fixture(params=["same boot", "booted"])
def boot(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "booted":
        path = tmp_path / "boot_id"
        path.write_text("another\n")
        monkeypatch.setattr(hostid, "BOOT_PATH", path)


@pytest.mark.usefixtures("boot")
@pytest.mark.parametrize("phase", NOT_BACK)
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_one_whose_bookkeeping_is_done_touches_no_disk(
    long_after: LongAfter, state: DomainState, phase: str
) -> None:
    """Thick disks would be written over, and are newer: nothing keeps them as they are."""
    scene = long_after.scene
    if state is DomainState.RUNNING:
        scene.hypervisor.start(scene.machine.domain, paused=False)
    ids, names = scene.ids(), scene.lvm.names()
    long_after.come_back(phase)
    mend(scene)
    assert scene.disk_data() == ["7", "7"] and scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is state
    assert scene.ids() == ids and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.usefixtures("boot")
@pytest.mark.parametrize("phase", NOT_BACK)
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_one_whose_undo_was_deleted_since_touches_no_disk(
    long_after: LongAfter, state: DomainState, phase: str
) -> None:
    """Nothing says for sure that it has ended; whoever reads what is said knows."""
    scene = long_after.scene
    (undo,) = set(scene.ids()) - {"x"}
    delete(scene, scene.host.catalog.get(UUID, SnapshotId(undo)))
    if state is DomainState.RUNNING:
        scene.hypervisor.start(scene.machine.domain, paused=False)
    names = scene.lvm.names()
    long_after.come_back(phase)
    try:
        mend(scene)
    except LeftBehind as left:
        assert "the journal of the rollback is older" in str(left)
        assert str(long_after.journal) in str(left) and "move that file" in left.hint()
    else:
        assert phase != "swapped", "of a thick disk that was not written yet nothing is taken back"
        assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.disk_data() == ["7", "7"] and scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is state and scene.ids() == ["x"]


@pytest.mark.parametrize("phase", BACK)
def test_nothing_comes_back_that_was_deleted_since(long_after: LongAfter, phase: str) -> None:
    """An undo record without any volume was what `undo` wanted to go back to, and could not."""
    scene = long_after.scene
    (undo,) = set(scene.ids()) - {"x"}
    delete(scene, scene.host.catalog.get(UUID, SnapshotId(undo)))
    scene.hypervisor.start(scene.machine.domain, paused=False)
    long_after.come_back(phase)
    mend(scene)
    assert scene.ids() == ["x"] and scene.host.catalog.leftovers(UUID) == ()
    assert scene.disk_data() == ["7", "7"]


@pytest.mark.parametrize("phase", [*NOT_BACK, *BACK])
def test_one_of_a_disk_that_has_another_name_by_now_ends_too(
    long_after: LongAfter, phase: str
) -> None:
    """LVM was told to change the tags of a volume that is not there, each time again."""
    scene = long_after.scene
    scene.lvm.named("vg0", "demo-d0").name = "root"
    disk = GuestDisk(target="vda", device=Path("/dev/vg0/root"))
    scene.machine.disks = (disk, *scene.machine.disks[1:])
    scene.hypervisor.start(scene.machine.domain, paused=False)
    long_after.come_back(phase)
    mend(scene)
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.lvm.named("vg0", "root").data == "7"


@pytest.mark.parametrize("phase", [*NOT_BACK, *BACK])
def test_what_the_catalog_lost_of_it_comes_back(long_after: LongAfter, phase: str) -> None:
    """The backup was made in the midst of it, before there was a record of what it kept."""
    scene = long_after.scene
    scene.hypervisor.start(scene.machine.domain, paused=False)
    (undo,) = set(scene.ids()) - {"x"}
    scene.host.catalog.forget(scene.host.catalog.folder(UUID, SnapshotId(undo)))
    long_after.come_back(phase)
    mend(scene)
    assert scene.ids() == ["x", undo] and scene.disk_data() == ["7", "7"]
