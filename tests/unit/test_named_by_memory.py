"""Memory has its disks by name: it is not restored where a name means another volume by now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapvm import rebuilding
from snapvm.memory import libvirtimage
from snapvm.model import DomainState, GuestDisk, Record
from snapvm.refusals import VolumeRefused
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import make_anew, roll_back, take_at_five

NAMES = ("/dev/vg0/demo-d0", "/dev/vg1/demo-d1")
DISK = "<disk type='block' device='disk'><source dev='{}'/><target dev='vd{}'/></disk>"


def made_anew(scene: Scene, record: Record, names: tuple[str, ...] = NAMES) -> Record:
    """Have libvirt's own image in the place of the fake's, and the record made anew from it."""
    assert record.memory is not None
    path = scene.host.catalog.path(record, record.memory.file)
    stream = path.read_bytes()
    path.unlink()
    disks = "".join(DISK.format(name, "ab"[number]) for number, name in enumerate(names))
    xml = f"<domain><name>{DOMAIN}</name><uuid>{UUID}</uuid><devices>{disks}</devices></domain>"
    image = libvirtimage.Writer()
    descriptor = image.begin(path, xml, "")
    os.write(descriptor, b"QEVM" + stream)
    os.close(descriptor)
    image.end(path)
    scene.host.catalog.path(record, "snapshot.json").unlink()
    (rebuilt,), _ = rebuilding.look(scene.host)
    assert make_anew(scene, rebuilt) == ""
    return scene.host.catalog.get(UUID, record.id)


def assert_refused(scene: Scene, record: Record, name: str) -> None:
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match=f"{name}, as the memory image calls it, is another"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and scene.machine.count == 8
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()


def test_by_their_own_names_they_come_back(scene: Scene) -> None:
    record = made_anew(scene, take_at_five(scene))
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and scene.machine.count == 5


def test_in_a_group_that_was_renamed_before_the_record_was_made_anew(scene: Scene) -> None:
    """The domain was ended, and then not started: its image named what is not there any more."""
    record = take_at_five(scene)
    scene.lvm.rename_group("vg0", "vg9")
    disks = (
        GuestDisk(target="vda", device=Path("/dev/vg9/demo-d0")),
        GuestDisk(target="vdb", device=Path("/dev/vg1/demo-d1")),
    )
    scene.machine.disks = disks
    assert_refused(scene, made_anew(scene, record), NAMES[0])


def test_memory_that_names_its_disk_by_a_link_which_leads_elsewhere_is_refused(
    scene: Scene, tmp_path: Path
) -> None:
    """The memory of then came upon a disk of today, which the guest spoilt."""
    link = tmp_path / "disk"
    link.symlink_to(NAMES[0])
    record = made_anew(scene, take_at_five(scene), (str(link), NAMES[1]))
    link.unlink()
    link.symlink_to("/dev/vg0/another")
    assert_refused(scene, record, str(link))
    link.unlink()
    link.symlink_to(NAMES[0])
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and scene.machine.count == 5
