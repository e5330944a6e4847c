"""``check`` tells of a volume group that soon has no room for the metadata of more snapshots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapvm import checking
from snapvm.lvm.report import Report
from snapvm.model import Silent
from tests.fakes.scene import Scene
from tests.unit.deeds import take


def told(scene: Scene, monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> dict[str, str]:
    """Return what is found while LVM has this much room in `vg0`."""
    asked = scene.host.lvm.report

    def report() -> Report:
        free = {"vg0": free_bytes}
        return Report(
            replace(
                volume,
                vg_metadata_free_bytes=free.get(volume.vg, volume.vg_metadata_free_bytes),
            )
            for volume in asked().volumes
        )

    with monkeypatch.context() as patch:
        patch.setattr(scene.host.lvm, "report", report)
        found = checking.look(scene.host, None, Silent(), deep=False)
    return {finding.subject: f"{finding.problem} ({finding.remedy})" for finding in found}


def test_a_group_that_soon_takes_no_more_volumes_is_told_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor said that all was well until the night in which every take was refused."""
    assert told(scene, monkeypatch, 20 << 10) == {}, "it holds no snapshots"
    take(scene, "x")
    assert told(scene, monkeypatch, 200 << 10) == {}
    (text,) = told(scene, monkeypatch, 20 << 10).values()
    assert "room for only 20 KiB more metadata" in text and "delete snapshots" in text
