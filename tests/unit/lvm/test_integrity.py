"""A RAID with checksums below it is a disk like any other, but for an LVM that is too old."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import planning
from snapvm.lvm import integrity
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import LvUuid, VgUuid
from snapvm.refusals import VolumeRefused
from snapvm.settings import Settings
from tests.fakes.lvm import FakeLvm
from tests.fakes.scene import Scene, make_scene


@pytest.fixture
def host(tmp_path: Path) -> Scene:
    return make_scene(tmp_path, thick=("vg0",))


def check(scene: Scene, *images: str, layout: str = "integrity") -> None:
    """Check a disk that is a RAID, with images of these names in its group."""
    found = scene.host.lvm.report().lv_from_name("vg0", "demo-d0")
    assert found is not None
    raid = replace(found, layout=frozenset({"raid", "raid1"}), attr="rwi-aor---")
    below = [_image(raid, name, layout) for name in images]
    planning.check_pools(scene.host.lvm, Report([raid, *below]), [raid], Settings())


def _image(raid: LogicalVolume, name: str, layout: str) -> LogicalVolume:
    return replace(
        raid,
        name=name,
        uuid=LvUuid(name),
        layout=frozenset({layout}),
        roles=frozenset({"private", "raid", "image"}),
    )


def test_a_raid_with_checksums_has_snapshots_where_lvm_makes_them(host: Scene) -> None:
    """LVM makes them from 2.03.22 on (lvm2, fd6e113bb)."""
    check(host, "demo-d0_rimage_0", "demo-d0_rimage_1")


def test_an_older_lvm_is_asked_before_the_window(host: Scene) -> None:
    """It makes none; that shows in the images below the RAID alone (lvs -a)."""
    host.lvm.is_old = True
    check(host, "other_rimage_0")
    check(host, "demo-d0_rimage_0", layout="linear")
    with pytest.raises(VolumeRefused, match="dm-integrity") as refused:
        check(host, "demo-d0_rimage_0")
    hint = refused.value.hint()
    assert "lvconvert --raidintegrity n vg0/demo-d0" in hint and "upgrade LVM" in hint


def test_a_disk_of_that_name_in_another_group_does_not_matter(host: Scene) -> None:
    found = host.host.lvm.report().lv_from_name("vg0", "demo-d0")
    assert found is not None
    raid = replace(found, layout=frozenset({"raid", "raid1"}))
    others = replace(_image(raid, "demo-d0_rimage_0", "integrity"), vg_uuid=VgUuid("other"))
    integrity.check(Report([raid, others]), [raid], lambda: (2, 3, 16))


def test_an_lvm_that_does_not_say_how_old_it_is_counts_as_old(
    host: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Lvm(FakeLvm()).version() == (2, 3, 31)
    monkeypatch.setitem(host.lvm._verbs, "version", lambda _words: "what?")
    with pytest.raises(VolumeRefused):
        check(host, "demo-d0_rimage_0")


@pytest.mark.parametrize(("version", "is_refused"), [((2, 3, 21), True), ((2, 3, 22), False)])
def test_the_first_lvm_that_makes_them_is_not_too_old(
    host: Scene, version: tuple[int, ...], is_refused: bool
) -> None:
    found = host.host.lvm.report().lv_from_name("vg0", "demo-d0")
    assert found is not None
    raid = replace(found, layout=frozenset({"raid", "raid1"}))
    report = Report([raid, _image(raid, "demo-d0_rimage_0", "integrity")])
    with pytest.raises(VolumeRefused) if is_refused else nullcontext():
        integrity.check(report, [raid], lambda: version)
