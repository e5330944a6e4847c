"""Take and rollback on fakes: what is left in LVM, in the catalog and of the domain."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from snapvm import swapping
from snapvm.attention import NotStarted
from snapvm.errors import Locked
from snapvm.model import (
    DomainState,
    DomainUuid,
    GuestDisk,
    HypervisorKind,
    Record,
    RecordKind,
)
from snapvm.refusals import (
    DomainRefused,
    RecordUnusable,
    SnapshotExists,
)
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import fail_deed, roll_back, take

NEW_UUID = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")


def test_a_take_brings_memory_and_every_disk(scene: Scene) -> None:
    scene.count(5)
    record = take(scene)
    scene.count(3)
    assert record.kind is RecordKind.FULL
    assert [disk.target for disk in record.disks] == ["vda", "vdb"]
    snapshots = [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv) for disk in record.disks]
    assert [volume.data for volume in snapshots] == ["5", "5"]
    assert all("snapvm.st=ok" in volume.tags for volume in snapshots)
    assert not any(volume.writable for volume in snapshots)
    assert not any(volume.active for volume in snapshots if volume.pool), "a thick one has to be"
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_rollback_brings_both_back_and_keeps_the_present(scene: Scene) -> None:
    scene.count(5)
    record = take(scene)
    scene.count(3)
    done = roll_back(scene, record)
    assert scene.machine.count == 5
    assert scene.disk_data() == ["5", "5"]
    assert done.undo.kind is RecordKind.UNDO
    kept = [scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv) for disk in done.undo.disks]
    assert [volume.data for volume in kept] == ["8", "8"]
    scene.count(1)
    assert scene.disk_data() == ["6", "6"]


def test_rolling_back_twice_then_older_then_newer(scene: Scene) -> None:
    taken = {}
    for name in ("old", "new"):
        scene.count(4)
        taken[name] = take(scene, name)
    for name, expected in (("new", 8), ("new", 8), ("old", 4), ("new", 8)):
        scene.count(1)
        roll_back(scene, taken[name])
        assert scene.machine.count == expected
        assert scene.disk_data() == [str(expected)] * 2


def test_an_undo_record_is_gone_back_to_like_any_other(scene: Scene) -> None:
    record = take(scene)
    scene.count(9)
    undo = roll_back(scene, record).undo
    roll_back(scene, scene.host.catalog.get(UUID, undo.id))
    assert scene.disk_data() == ["9", "9"]


def test_the_disks_after_a_rollback_are_the_users_own(scene: Scene) -> None:
    """One may have been a snapshot, to which its owner has given a name and the right to write."""
    of_before = "snapvm.lv=of-before"
    disks = (("vg0", "demo-d0"), ("vg1", "demo-d1"))
    for vg, name in disks:
        scene.lvm.named(vg, name).tags = {"backup", of_before}
    roll_back(scene, take(scene))
    for vg, name in disks:
        disk = scene.lvm.named(vg, name)
        assert disk.tags - {of_before} == {"backup"} and disk.writable
        assert of_before not in disk.tags or not disk.pool, "what replaces it is no snapshot"


@pytest.mark.parametrize("state", [DomainState.SHUTOFF, DomainState.PAUSED])
def test_a_domain_stays_as_its_owner_left_it(tmp_path: Path, state: DomainState) -> None:
    scene = make_scene(tmp_path, state=state)
    record = take(scene)
    assert (record.memory is not None) is state.has_memory
    assert record.kind is (RecordKind.FULL if state.has_memory else RecordKind.DISKS)
    assert scene.hypervisor.state_of(DOMAIN) is state
    roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is state


def test_the_present_is_kept_beside_the_start_of_the_domain(scene: Scene) -> None:
    """A restore takes seconds, and so does the bookkeeping of LVM: neither waits for the other."""
    record = take(scene, "x")
    settled = Event()
    settle = swapping.settle

    def before(deed: str) -> None:
        if deed == "restore":
            assert settled.wait(10), "the bookkeeping waits for the domain"

    def settle_and_tell(*arguments: Any) -> Record:
        undo = settle(*arguments)
        settled.set()
        return undo

    scene.hypervisor.before = before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swapping, "settle", settle_and_tell)
        undo = roll_back(scene, record).undo
    assert {undo.id, "x"} == set(scene.ids()) and scene.host.catalog.leftovers(UUID) == ()


def test_rollback_can_leave_the_domain_paused(scene: Scene) -> None:
    roll_back(scene, take(scene), paused=True)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.PAUSED


def test_a_xen_domain_that_was_created_anew_is_the_same_machine(scene: Scene) -> None:
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    scene.hypervisor.kind = HypervisorKind.XEN
    scene.count(5)
    record = take(scene, "a")
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    scene.count(2)
    with pytest.raises(SnapshotExists):
        take(scene, "a")
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_a_xen_domain_that_had_more_disks_later_goes_forward_again(scene: Scene) -> None:
    """Back at a time before it was created anew and got a disk, it has the uuid of that time."""
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    scene.hypervisor.kind = HypervisorKind.XEN
    scene.count(5)
    later = take(scene)
    scene.hypervisor.stop(scene.machine.domain)
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    scene.machine.disks = scene.machine.disks[:1]
    scene.hypervisor.start(scene.machine.domain, paused=False)
    scene.count(2)
    roll_back(scene, later)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_another_machine_of_that_name_is_not_taken_for_it(scene: Scene) -> None:
    scene.machine.domain = replace(scene.machine.domain, hypervisor=HypervisorKind.XEN)
    record = take(scene)
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    scene.lvm.add_disk("vg0", "other", data="0")
    other = GuestDisk(target="vdb", device=Path("/dev/vg0/other"))
    scene.machine.disks = (scene.machine.disks[0], other)
    with pytest.raises(DomainRefused, match="not the domain that") as refused:
        roll_back(scene, record)
    assert "needs all the disks" in refused.value.hint()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_libvirt_domain_of_another_uuid_is_another(scene: Scene) -> None:
    record = take(scene)
    scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
    with pytest.raises(DomainRefused, match="not the domain that"):
        roll_back(scene, record)


def test_a_domain_defined_anew_while_its_lock_is_waited_for_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock, the guard and the folder would be one domain's, and the record another's."""
    locked = scene.host.catalog.locked

    def waited(uuid: DomainUuid, name: str) -> AbstractContextManager[None]:
        scene.machine.domain = replace(scene.machine.domain, uuid=NEW_UUID)
        return locked(uuid, name)

    before = scene.lvm.names()
    with monkeypatch.context() as patch, pytest.raises(DomainRefused, match="anew") as refused:
        patch.setattr(scene.host.catalog, "locked", waited)
        take(scene, "a")
    assert "take the snapshot again" in refused.value.hint()
    assert scene.lvm.names() == before and scene.host.catalog.domains() == ()
    assert take(scene, "a").domain_uuid == NEW_UUID


def test_a_name_is_given_once(scene: Scene) -> None:
    take(scene, "before-upgrade")
    with pytest.raises(SnapshotExists):
        take(scene, "before-upgrade")
    assert scene.ids() == ["before-upgrade"]


def test_a_second_snapvm_is_kept_out(scene: Scene) -> None:
    with scene.host.catalog.locked(UUID, DOMAIN), pytest.raises(Locked):
        take(scene)


def test_a_snapshot_that_is_gone_is_refused_before_anything(scene: Scene) -> None:
    record = take(scene)
    scene.lvm.volumes.remove(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    with pytest.raises(RecordUnusable):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_an_image_that_has_changed_is_refused_and_nothing_is_left(scene: Scene) -> None:
    """It is read while the clones are made: they go again, and the domain runs on."""
    record = take(scene)
    scene.count(3)
    assert record.memory is not None
    image = scene.host.catalog.path(record, record.memory.file)
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    names = scene.lvm.names()
    with pytest.raises(RecordUnusable, match="has changed"):
        roll_back(scene, record)
    assert scene.lvm.names() == names
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["3", "3"]
    assert scene.ids() == [record.id]


def test_a_domain_that_does_not_start_is_named(scene: Scene) -> None:
    record = take(scene)
    scene.count(2)
    fail_deed(scene, "restore")
    with pytest.raises(NotStarted):
        roll_back(scene, record)
    scene.hypervisor.before = lambda _deed: None
    assert len(scene.ids()) == 2, "what was current is kept"
    roll_back(scene, record)
    assert scene.disk_data() == ["0", "0"]
