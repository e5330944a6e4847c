"""What is refused says what is in the way, and what its owner can do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.lvm import preflight
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import LvUuid, VgUuid
from snapvm.refusals import VolumeRefused
from tests.fakes.scene import make_scene


@pytest.fixture
def disk(tmp_path: Path) -> LogicalVolume:
    report = make_scene(tmp_path, thick=("vg0",)).host.lvm.report()
    disk = report.lv_from_name("vg0", "demo-d0")
    assert disk is not None
    return disk


def check(volume: LogicalVolume, *others: LogicalVolume) -> None:
    preflight.check_volumes(
        Report([volume, *others]),
        [volume],
        data_limit_percent=80,
        metadata_limit_percent=80,
        extend_threshold_percent=lambda _profile: 100.0,
    )


def refusal(volume: LogicalVolume) -> VolumeRefused:
    with pytest.raises(VolumeRefused) as refused:
        check(volume)
    return refused.value


@pytest.mark.parametrize(
    ("layout", "why", "remedy"),
    [
        ("cache", "dm-cache", "lvconvert --splitcache vg0/demo-d0"),
        ("writecache", "dm-writecache", "lvconvert --splitcache vg0/demo-d0"),
        ("mirror", "dm-mirror", "lvconvert --type raid1 vg0/demo-d0"),
        ("vdo", "VDO", "thin pool"),
    ],
)
def test_a_volume_of_another_kind_is_called_what_it_is(
    disk: LogicalVolume, layout: str, why: str, remedy: str
) -> None:
    refused = refusal(replace(disk, layout=frozenset({layout}), attr="Cwi-aoC---"))
    assert why in refused.why and remedy in refused.hint()
    assert "moving or converting" not in refused.why


def test_one_of_two_groups_of_a_name_is_refused_before_the_window(disk: LogicalVolume) -> None:
    """A guest's own group on a LUN may be called as the host's; lvm then refuses either."""
    other = replace(disk, vg_uuid=VgUuid("guest-uuid"), uuid=LvUuid("other"), name="root")
    with pytest.raises(VolumeRefused) as refused:
        check(disk, other)
    assert "2 volume groups named vg0" in refused.value.why
    assert "vgrename guest-uuid" in refused.value.hint()


def test_a_group_whose_metadata_is_nearly_full_is_refused(disk: LogicalVolume) -> None:
    """LVM fails in the middle then: of a window, or of what comes after a rollback."""
    refused = refusal(replace(disk, vg_metadata_free_bytes=7 << 10))
    assert "7 KiB left for metadata" in refused.why and "delete" in refused.hint()


def test_one_that_is_being_moved_is_busy(disk: LogicalVolume) -> None:
    assert "moving or converting" in refusal(replace(disk, attr="-wI-ao----")).why


def test_one_that_is_suspended_comes_with_what_lets_it_go_on(disk: LogicalVolume) -> None:
    refused = refusal(replace(disk, attr="owi-sos---"))
    assert "suspended" in refused.why and "lvchange --refresh vg0/demo-d0" in refused.hint()


def test_a_disk_that_is_activated_on_demand_is_not_taken_for_a_snapshot(
    disk: LogicalVolume,
) -> None:
    refused = refusal(replace(disk, attr="Vwi---tz-k"))
    assert "only on demand" in refused.why
    assert "lvchange -ay --ignoreactivationskip vg0/demo-d0" in refused.hint()
