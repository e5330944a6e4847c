"""A rollback and the overlays on its disks: those would be spoilt by it, whoever has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor.base import Reliance
from snapvm.model import GuestDisk
from snapvm.refusals import DomainRefused
from tests.fakes.overlay import disk_xml, make_overlay
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.deeds import roll_back, take_at_five
from tests.unit.occupied import (
    OTHER,
    assert_untouched,
    is_a_file,
    volumes,
)


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("where", ["runs on it", "booted with it", "off"])
def test_nothing_goes_back_below_an_overlay(
    scene: Scene,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    where: str,
    with_memory: bool,
) -> None:
    """Its changes would be those of another disk, whenever the domain is started on it."""
    record = take_at_five(scene, with_memory=with_memory)
    overlay = make_overlay(tmp_path / "snapshot.qcow2", "/dev/vg0/demo-d0")
    upon = replace(scene.machine.domain, definition=disk_xml(overlay))
    if where == "runs on it":
        scene.machine.domain = upon
    else:
        monkeypatch.setattr(scene.hypervisor, "boots_as", lambda _domain: upon)
    if where == "off":
        scene.hypervisor.stop(scene.machine.domain)
        monkeypatch.setattr(scene.hypervisor, "drives", is_a_file)
        scene.lvm.named("vg0", "demo-d0").active = False
    before = volumes(scene)
    with pytest.raises(DomainRefused, match="disk vda is an overlay on vg0/demo-d0") as refused:
        roll_back(scene, record)
    assert f"virsh blockcommit {DOMAIN} vda --active --pivot" in refused.value.hint()
    assert_untouched(scene, before, record)


def test_one_on_something_else_is_not_in_the_way(scene: Scene, tmp_path: Path) -> None:
    record = take_at_five(scene)
    overlay = make_overlay(tmp_path / "snapshot.qcow2", "/dev/vg0/demo-d7")
    scene.machine.domain = replace(scene.machine.domain, definition=disk_xml(overlay))
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("is_off", [False, True])
def test_nothing_goes_back_below_what_another_domain_has_upon_it(
    scene: Scene, *, is_off: bool, with_memory: bool
) -> None:
    """A golden image: its clones are off, and nobody holds the volume but its own domain."""
    record = take_at_five(scene, with_memory=with_memory)
    clone = Reliance(
        domain=OTHER,
        target="sda",
        device=Path("/dev/vg1/demo-d1"),
        tie="is an overlay on",
        why="it would be spoilt",
        remedy="give it up",
    )
    scene.hypervisor.relied_on = [clone, replace(clone, device=Path("/dev/vg1/other"))]
    if is_off:
        scene.hypervisor.stop(scene.machine.domain)
        scene.lvm.named("vg1", "demo-d1").active = False
    before = volumes(scene)
    with pytest.raises(DomainRefused) as refused:
        roll_back(scene, record)
    assert f"disk sda of {OTHER} is an overlay on vg1/demo-d1" in str(refused.value)
    assert refused.value.hint() == "give it up"
    assert_untouched(scene, before, record)
    scene.hypervisor.relied_on = [replace(clone, device=Path("/dev/vg1/other"))]
    roll_back(scene, record)


def test_nothing_goes_back_below_an_overlay_in_a_group_of_another_name(scene: Scene) -> None:
    """Overlays were looked for upon the former name alone, and the disk below them went back."""
    record = take_at_five(scene, with_memory=False)
    scene.lvm.rename_group("vg1", "renamed")
    moved = GuestDisk(target="vdb", device=Path("/dev/renamed/demo-d1"))
    scene.machine.disks = (scene.machine.disks[0], moved)
    clone = Reliance(
        domain=OTHER,
        target="sda",
        device=moved.device,
        tie="is an overlay on",
        why="it would be spoilt",
        remedy="give it up",
    )
    scene.hypervisor.relied_on = [clone]
    before = volumes(scene)
    with pytest.raises(DomainRefused, match="is an overlay on renamed/demo-d1"):
        roll_back(scene, record)
    assert_untouched(scene, before, record)
    scene.hypervisor.relied_on = [replace(clone, device=Path("/dev/vg1/demo-d1"))]
    roll_back(scene, record)
    assert scene.lvm.named("renamed", "demo-d1").data == "5"
