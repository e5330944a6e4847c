"""What a rollback proves before it touches anything: each of these is refused, nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, images, naming
from snapvm.model import DomainState, HypervisorKind, Record, Silent
from snapvm.refusals import DomainRefused, HostLacks, RecordUnusable, Refused, VolumeRefused
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.machine import COOKIE
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import begun, roll_back, take


def refused(scene: Scene, record: Record) -> Refused:
    """Go back, which is refused, and see that nothing has changed."""
    before = {(v.vg, v.name, v.uuid, v.data, *sorted(v.tags)) for v in scene.lvm.volumes}
    states = {name: machine.domain.state for name, machine in scene.hypervisor.machines.items()}
    with pytest.raises(Refused) as told:
        roll_back(scene, record)
    assert {(v.vg, v.name, v.uuid, v.data, *sorted(v.tags)) for v in scene.lvm.volumes} == before
    assert {name: m.domain.state for name, m in scene.hypervisor.machines.items()} == states
    assert scene.ids() == [record.id] and scene.host.catalog.leftovers(UUID) == ()
    return told.value


@pytest.mark.parametrize("was_thick", [False, True])
def test_a_disk_that_is_of_the_other_kind_by_now(tmp_path: Path, was_thick: bool) -> None:
    scene, record = begun(tmp_path, *(["vg1"] if was_thick else []))
    former = scene.lvm.named("vg1", "demo-d1")
    former.name = "demo-d1.before"
    now = scene.lvm.add_disk("vg1", "demo-d1", pool="pool" if was_thick else "", data="8")
    scene.machine.held[1] = now
    former.opened, now.opened = False, True
    told = refused(scene, record)
    assert isinstance(told, VolumeRefused) and told.volume == "vg1/demo-d1"
    assert "thin" in str(told) and "thick" in str(told)


def test_a_thick_snapshot_that_cannot_be_asked(tmp_path: Path) -> None:
    """It may be lost; that would show only when its disk is half written back."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    scene.hypervisor.stop(scene.machine.domain)
    for volume in scene.lvm.volumes:
        volume.active = volume.is_pool
    told = refused(scene, record)
    assert told.hint() == "lvchange -ay vg0/demo-d0"
    for number in range(2):
        volume = scene.lvm.named(f"vg{number}", f"demo-d{number}")
        scene.lvm.obey(("lvm", "lvchange", "--activate", "y", f"{volume.vg}/{volume.name}"))
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_somebodys_thick_snapshot_of_a_thin_disk_that_is_in_use(tmp_path: Path) -> None:
    """A backup reads it; LVM does not deactivate what was the disk: status 7 for as long."""
    scene, record = begun(tmp_path)
    theirs = scene.lvm.add_disk("vg0", "backup", pool="")
    theirs.origin, theirs.origin_bytes, theirs.opened = "demo-d0", 1 << 26, True
    told = refused(scene, record)
    assert isinstance(told, VolumeRefused) and told.volume == "vg0/backup"
    assert "`fuser -v /dev/vg0/backup` and `lsblk /dev/vg0/backup` show it" in told.hint()
    theirs.opened = False
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and theirs in scene.lvm.volumes


def test_a_disk_that_was_removed_comes_back(tmp_path: Path) -> None:
    """By somebody's lvremove; its thin snapshot does not go with it."""
    scene, record = begun(tmp_path)
    scene.hypervisor.stop(scene.machine.domain)
    gone = scene.lvm.named("vg1", "demo-d1")
    scene.lvm.volumes.remove(gone)
    told = refused(scene, record)
    assert isinstance(told, VolumeRefused) and "there is no such volume" in told.why
    wanted = f"lvcreate --virtualsize {gone.size_bytes}b --name demo-d1 --thinpool pool vg1"
    assert wanted in told.hint() and "lvrename" in told.hint()
    scene.lvm.add_disk("vg1", "demo-d1")
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def make_writable(snapshot: FakeVolume) -> str:
    snapshot.writable = True
    return "is writable"


def resize(snapshot: FakeVolume) -> str:
    snapshot.size_bytes *= 2
    snapshot.origin_bytes *= 2
    return "has a different size"


def merge(snapshot: FakeVolume) -> str:
    snapshot.merging = True
    return "is being merged"


def harm(snapshot: FakeVolume) -> str:
    snapshot.health = "refresh needed"
    return "is not healthy: refresh needed"


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
@pytest.mark.parametrize("change", [make_writable, resize, merge, harm])
def test_a_snapshot_that_is_not_what_was_recorded(
    tmp_path: Path, thick: tuple[str, ...], change: Callable[[FakeVolume], str]
) -> None:
    """What `check` calls unusable nobody goes back to."""
    scene, record = begun(tmp_path, *thick)
    words = change(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    told = refused(scene, record)
    assert isinstance(told, RecordUnusable) and words in str(told)
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert words in found.problem and record.disks[1].snapshot.lv in found.problem


def test_a_store_that_was_taken_off_its_disk(tmp_path: Path) -> None:
    """`lvconvert --splitsnapshot`; it may be as large as the disk was."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    store = scene.lvm.named("vg1", record.disks[1].snapshot.lv)
    store.origin, store.origin_bytes, store.size_bytes = "", 0, record.disks[1].size_bytes
    told = refused(scene, record)
    assert isinstance(told, RecordUnusable) and "is no longer a snapshot" in str(told)
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert "is no longer a snapshot" in found.problem


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_one_that_was_only_read_is_gone_back_to(tmp_path: Path, thick: tuple[str, ...]) -> None:
    scene, record = begun(tmp_path, *thick)
    for disk in record.disks:
        snapshot = scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv)
        snapshot.active = snapshot.opened = True
    if thick:
        snapshot.size_bytes += 4 << 20  # lvextend: its store only
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("is_off", [False, True])
def test_a_domain_of_another_name(tmp_path: Path, is_off: bool) -> None:
    scene, record = begun(tmp_path)
    machine = scene.machine
    if is_off:
        scene.hypervisor.stop(machine.domain)
    machine.domain = replace(machine.domain, name="new name")
    scene.hypervisor.machines = {"new name": machine}
    told = refused(scene, record)
    assert isinstance(told, DomainRefused) and "'new name'" in str(told)
    assert "while it is off: virsh domrename 'new name' demo" in told.hint()
    machine.domain = replace(machine.domain, name=DOMAIN)
    scene.hypervisor.machines = {DOMAIN: machine}
    roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("is_off", [False, True])
def test_whether_it_is_to_be_started_is_told(tmp_path: Path, is_off: bool) -> None:
    """One that is left off needs none of the files that only a start would open."""
    scene, record = begun(tmp_path)
    if is_off:
        scene.hypervisor.stop(scene.machine.domain)
        record = take(scene)
    asked: list[str] = []
    scene.hypervisor.before = asked.append
    roll_back(scene, record)
    assert ("check_restore" in asked, "check_restore, left off" in asked) == (not is_off, is_off)


def test_memory_for_it_is_looked_for(tmp_path: Path) -> None:
    """The domain was ended, its disks were exchanged, and then there was no room for it."""
    scene, record = begun(tmp_path)
    scene.hypervisor.room_bytes = 1
    assert isinstance(refused(scene, record), HostLacks)
    scene.hypervisor.room_bytes = record.memory_bytes
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_the_processor_that_it_ran_on_is_looked_for(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    scene.hypervisor.lacks = COOKIE
    assert isinstance(refused(scene, record), HostLacks)


def test_a_processor_of_which_xen_would_say_nothing_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, record = begun(tmp_path)
    monkeypatch.setattr(images, "processor", lambda *_: b"leaves")
    scene.hypervisor.lacks_leaves = b"leaves"
    assert isinstance(refused(scene, record), HostLacks)


def test_an_image_that_is_not_restored_here_ends_nobody(tmp_path: Path) -> None:
    """QEMU was updated since, and libvirt was not."""
    scene, record = begun(tmp_path)
    scene.hypervisor.installed = {"libvirt": "11.3.0", "qemu": "11.0.1"}
    told = refused(scene, record)
    assert isinstance(told, HostLacks) and "restores no plain memory image" in str(told)
    scene.hypervisor.installed = {"libvirt": "11.1.0", "qemu": "11.0.1"}
    with pytest.raises(HostLacks):
        take(scene)
    scene.hypervisor.installed = {"libvirt": "12.1.0", "qemu": "11.0.1"}
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_memory_of_another_hypervisor(scene: Scene) -> None:
    """Of a host that was booted without Xen, or with it: its image was called one of nonsense."""
    record = take(scene)
    scene.hypervisor.kind = HypervisorKind.XEN
    told = refused(scene, record)
    assert "lacks libvirt's KVM" in str(told) and "now it runs Xen" in str(told)


@pytest.mark.parametrize("name", ["demo-d0.roll.0123456789ab", "demo-d0.undo-20261122T201801Z"])
def test_a_name_that_is_going_to_be_needed_and_is_somebodys(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """LVM would refuse it while the domain stands still."""
    record = take(scene)
    monkeypatch.setattr(naming, "new_set", lambda: "0123456789ab")
    monkeypatch.setattr(naming, "stamp", lambda _: "20261122T201801Z")
    scene.lvm.add_disk("vg0", name)
    told = refused(scene, record)
    assert isinstance(told, VolumeRefused) and f"vg0/{name}" in str(told)
