"""What the kernel has given up is not called well later, when it knows nothing of that any more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency
from snapvm.attention import GivenBack, HalfBack
from snapvm.model import DomainState, Silent
from snapvm.refusals import RecordUnusable
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.scene import DOMAIN, UUID
from tests.unit.deeds import begun, delete, hang, lose, mend, roll_back, take


def forget(volume: FakeVolume) -> None:
    """Boot the host: the kernel finds a store that says nothing, for it could not be written."""
    volume.invalid = False


@pytest.mark.parametrize("seen_by", ["take", "rollback", "repair"])
def test_what_was_lost_is_so_after_a_boot_too(tmp_path: Path, seen_by: str) -> None:
    """Where a store cannot be written, the kernel cannot write there that the snapshot is lost."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    volume = lose(scene, record, "vg1")
    if seen_by == "take":
        take(scene, "y")
    elif seen_by == "repair":
        consistency.repair_all(scene.host, DOMAIN, Silent())
    else:
        with pytest.raises(RecordUnusable, match="is lost"):
            roll_back(scene, record)
    forget(volume)
    names = scene.lvm.names()
    with pytest.raises(RecordUnusable, match="is lost"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["8", "8"] and scene.lvm.names() == names
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert found.subject == record.ref and "is lost" in found.problem
    delete(scene, record)
    assert record.id not in scene.ids() and volume not in scene.lvm.volumes


@pytest.mark.parametrize("thick", [("vg0", "vg1"), ("vg1",)], ids=["thick", "mixed"])
def test_what_was_lost_while_it_was_written_back_is_so_after_a_boot(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    """A repair after the boot copied what was left of it, and called the rollback finished."""
    scene, record = begun(tmp_path, *thick)
    names = scene.lvm.names()
    lost: list[FakeVolume] = []

    def strike(argv: tuple[str, ...]) -> None:
        if argv[0] == "copy":
            lost.append(lose(scene, record, "vg1"))

    scene.lvm.before = strike
    with pytest.raises(HalfBack):
        roll_back(scene, record)
    scene.lvm.before = lambda _argv: None
    forget(lost[0])
    with pytest.raises(GivenBack):
        mend(scene)
    assert scene.disk_data() == ["8", "8"] and scene.lvm.names() == names
    assert scene.host.catalog.leftovers(UUID) == ()


def test_that_what_was_current_is_lost_is_told_and_kept_in_mind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its store could not be written below the disk that was taken back."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    kept: list[FakeVolume] = []

    def strike(argv: tuple[str, ...]) -> None:
        if argv[0] == "copy" and not kept:
            kept.extend(v for v in scene.lvm.volumes if v.vg == "vg1" and ".undo-" in v.name)
            kept[0].invalid = True

    scene.lvm.before = strike
    undo = roll_back(scene, record).undo
    assert scene.disk_data() == ["5", "5"]
    assert f"the former contents of disk vdb are lost: {kept[0].vg}/" in caplog.text
    forget(kept[0])
    with pytest.raises(RecordUnusable, match="is lost"):
        roll_back(scene, undo)
    assert scene.disk_data() == ["5", "5"]


def test_a_store_with_room_for_everything_is_not_said_to_have_run_full(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg0", "vg1")
    lose(scene, record, "vg1")
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert "is lost: its store could not be written" in found.problem


def test_what_others_lost_is_not_marked(tmp_path: Path) -> None:
    scene, record = begun(tmp_path, "vg0", "vg1")
    theirs = replace(scene.lvm.named("vg0", record.disks[0].snapshot.lv), name="theirs")
    theirs.uuid, theirs.tags, theirs.invalid = theirs.uuid.replace("0", "a"), {"nightly"}, True
    scene.lvm.volumes.append(theirs)
    take(scene, "y")
    assert theirs.tags == {"nightly"}
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


def test_a_mark_that_cannot_be_made_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene, record = begun(tmp_path, "vg0", "vg1")
    lose(scene, record, "vg1")
    hang(scene, "lvchange")
    with pytest.raises(RecordUnusable, match="is lost"):
        roll_back(scene, record)
    assert "vg1/demo-d1.x" in caplog.text
