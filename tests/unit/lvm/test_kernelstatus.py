"""What the kernel says of thick snapshots: full, given up, or nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.lvm import kernelstatus
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from tests.fakes.scene import Scene, make_scene
from tests.unit.deeds import take


@pytest.fixture
def thick(tmp_path: Path) -> Scene:
    scene = make_scene(tmp_path, thick=("vg0",))
    take(scene, "x")
    return scene


def told(scene: Scene, said: str) -> LogicalVolume:
    report = kernelstatus.applied(scene.host.lvm.report(), said)
    snapshot = report.lv_from_name("vg0", "demo-d0.x")
    assert snapshot is not None
    return snapshot


def test_it_is_as_full_and_as_large_as_the_kernel_says(thick: Scene) -> None:
    found = told(thick, "vg0-demo--d0.x: 0 131072 snapshot 34816/139264 1024 \n")
    assert found.is_known_whole and found.data_percent == 25.0
    assert found.size_bytes == 139264 * 512


def test_one_that_holds_nothing_yet_is_as_empty_as_lvm_says(thick: Scene) -> None:
    """The contract with the real thing found it: LVM does not count the store's own table."""
    assert told(thick, "vg0-demo--d0.x: 0 131072 snapshot 32/8704 32\n").data_percent == 0.0


@pytest.mark.parametrize("word", ["Invalid", "Merge failed", "Overflow"])
def test_one_that_was_given_up_is_lost(thick: Scene, word: str) -> None:
    found = told(thick, f"vg0-demo--d0: 0 8 snapshot-origin\nvg0-demo--d0.x: 0 8 snapshot {word}\n")
    assert found.is_lost and not found.is_known_whole


@pytest.mark.parametrize(
    "said", ["", "vg0-demo--d0.x: 0 131072 snapshot-merge 16/139264 16\n", "No devices found\n"]
)
def test_what_is_not_said_is_not_known(thick: Scene, said: str) -> None:
    found = told(thick, said)
    assert not found.is_known_whole and not found.is_lost


def test_where_a_device_has_gone_lvm_is_asked(thick: Scene) -> None:
    """Somebody has removed another snapshot of the disk since LVM told of it."""
    report = thick.host.lvm.report()
    disk = report.lv_from_name("vg0", "demo-d0")
    snapshot = report.lv_from_name("vg0", "demo-d0.x")
    assert disk is not None and snapshot is not None
    known = Report([*report.volumes, replace(snapshot, name="gone")])
    found = thick.host.lvm.filled(known, [disk], 60.0)
    assert found.lv_from_name("vg0", "gone") is None
    assert found.lv_from_name("vg0", "demo-d0.x") == snapshot
