"""A rollback and the disks that the domain has by now, or has no more: none of two times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import rollbackplan
from snapvm.model import Domain, GuestDisk, OmittedDisk
from snapvm.refusals import DiskRefused, DomainRefused, VolumeRefused
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.deeds import roll_back, take_at_five
from tests.unit.occupied import (
    assert_untouched,
    attach,
    detach,
    restore_brings,
    volumes,
)


@pytest.mark.parametrize("is_off", [False, True])
def test_a_domain_is_not_started_without_a_disk_that_went_back(scene: Scene, is_off: bool) -> None:
    record = take_at_five(scene, with_memory=False)
    detach(scene)
    if is_off:
        scene.hypervisor.stop(scene.machine.domain)
    before = volumes(scene)
    with pytest.raises(VolumeRefused, match="does not have it now") as refused:
        roll_back(scene, record)
    assert "attach it" in refused.value.hint()
    assert_untouched(scene, before, record)


@pytest.mark.parametrize("is_off", [False, True])
def test_a_domain_is_not_started_on_disks_of_two_times(scene: Scene, is_off: bool) -> None:
    record = take_at_five(scene, with_memory=False)
    attach(scene)
    if is_off:
        scene.hypervisor.stop(scene.machine.domain)
    before = volumes(scene)
    with pytest.raises(DomainRefused, match=f"has disk vdc, and {DOMAIN}@x was taken") as refused:
        roll_back(scene, record)
    assert "detach" in refused.value.hint()
    assert_untouched(scene, before, record)


def test_the_disks_that_count_are_those_it_is_booted_with(scene: Scene) -> None:
    """`virsh detach-disk` without --config leaves one in the definition, attach puts none there."""
    record = take_at_five(scene, with_memory=False)
    had = scene.machine.disks
    attach(scene)
    scene.machine.boot_disks = had
    rollbackplan.plan(scene.host, record)
    scene.machine.disks, scene.machine.boot_disks = had, scene.machine.disks
    before = volumes(scene)
    with pytest.raises(DomainRefused, match="has disk vdc") as refused:
        roll_back(scene, record)
    assert f"virsh detach-disk {DOMAIN} vdc --config" in refused.value.hint()
    assert_untouched(scene, before, record)


def test_what_it_would_be_booted_with_does_not_matter_to_memory(scene: Scene) -> None:
    record = take_at_five(scene)
    scene.machine.boot_disks = (
        *scene.machine.disks,
        GuestDisk(target="vdc", device=Path("/dev/vg0/more")),
    )
    undo = roll_back(scene, record).undo
    assert [left.target for left in undo.omitted] == ["vdc"]
    rollbackplan.plan(scene.host, undo)


def test_a_domain_is_not_started_beside_a_disk_that_is_no_volume(scene: Scene) -> None:
    record = take_at_five(scene, with_memory=False)
    scene.machine.disks += (GuestDisk(target="sdb", device=Path("/dev/sdz")),)
    with pytest.raises(DomainRefused, match="has disk sdb"):
        roll_back(scene, record)


@pytest.mark.parametrize("target", ["vdc", "vdb"])
def test_one_that_is_off_is_not_booted_beside_such_a_disk_either(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """A file is a disk too; whatever is wrong with a disk that goes back is wrong after it."""
    record = take_at_five(scene, with_memory=False)
    scene.hypervisor.stop(scene.machine.domain)
    before = volumes(scene)

    def drives(domain: Domain) -> object:
        raise DiskRefused(domain=domain.name, target=target, why="it is the file /x")

    monkeypatch.setattr(scene.hypervisor, "drives", drives)
    if target == "vdb":
        roll_back(scene, record)
        assert scene.disk_data() == ["5", "5"]
        return
    with pytest.raises(DomainRefused, match=f"has disk vdc, and {DOMAIN}@x was taken") as refused:
        roll_back(scene, record)
    assert "detach-disk" in refused.value.hint()
    assert_untouched(scene, before, record)


def test_the_image_says_which_disks_there_are(scene: Scene) -> None:
    record = take_at_five(scene)
    restore_brings(scene, scene.machine.disks)
    attach(scene)
    undo = roll_back(scene, record).undo
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    roll_back(scene, undo)
    assert scene.disk_data() == ["8", "8"]


def test_the_way_back_is_open_beside_a_disk_that_the_rollback_left_alone(scene: Scene) -> None:
    record = take_at_five(scene)
    attach(scene)
    undo = roll_back(scene, record).undo
    assert [left.target for left in undo.omitted] == ["vdc"]
    roll_back(scene, undo)
    assert scene.disk_data() == ["8", "8"]


def test_a_disk_that_was_left_out_is_not_in_the_way(scene: Scene) -> None:
    record = take_at_five(scene, with_memory=False)
    attach(scene)
    left_out = OmittedDisk(target="vdc", why="read-only")
    record = replace(record, omitted=(left_out,))
    rollbackplan.plan(scene.host, record)


def test_what_nobody_captures_is_known_to_the_undo_record_too(scene: Scene) -> None:
    """Memory that comes back writes its UEFI variables over those that nobody has kept."""
    scene.machine.omitted = (OmittedDisk(target="nvram", why="it is on /dev/vg0/vars"),)
    record = take_at_five(scene)
    assert record.omitted == scene.machine.omitted
    assert roll_back(scene, record).undo.omitted == scene.machine.omitted
