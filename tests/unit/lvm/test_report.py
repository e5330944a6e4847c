"""A report is looked into once for each snapshot of a host, and there may be thousands of both."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import LvRef, LvUuid
from tests.fakes.scene import make_scene


@pytest.fixture
def disk(tmp_path: Path) -> LogicalVolume:
    disk = make_scene(tmp_path, thick=("vg0",)).host.lvm.report().lv_from_name("vg0", "demo-d0")
    assert disk is not None
    return disk


def host_with(disk: LogicalVolume, count: int) -> Report:
    """Return the report of so many disks, with a snapshot each."""
    disks = [replace(disk, name=f"d{n}", uuid=LvUuid(f"d{n}")) for n in range(count)]
    roles = frozenset({"public", "snapshot", "thicksnapshot"})
    snapshots = [
        replace(disk, name=f"s{n}", uuid=LvUuid(f"s{n}"), origin=f"d{n}", roles=roles)
        for n in range(count)
    ]
    return Report([*disks, *snapshots])


def steps(report: Report) -> int:
    """Return how many calls it takes to learn of every volume what is built upon it, or gone."""
    counted = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        for volume in report.volumes:
            report.snapshots_of(volume)
            report.overlays_of(volume)
            report.heirs(LvRef(vg="vg0", lv="gone", uuid=LvUuid("gone"), vg_uuid=volume.vg_uuid))
    finally:
        sys.setprofile(None)
    return counted


def test_five_times_the_volumes_take_five_times_as_long(disk: LogicalVolume) -> None:
    few, many = steps(host_with(disk, 20)), steps(host_with(disk, 100))
    assert many < 7 * few


def test_it_knows_what_is_upon_a_volume(disk: LogicalVolume) -> None:
    report = host_with(disk, 3)
    (of_one,) = report.snapshots_of(report.volumes[1])
    assert of_one.name == "s1" and report.snapshots_of(of_one) == ()
