"""A rollback of a domain that is not what it was: asleep, forgotten, or defined anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import consistency
from snapvm.model import DomainState, DomainUuid, GuestDisk, Silent
from snapvm.refusals import DomainRefused, VolumeRefused
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import roll_back, take, take_at_five, use
from tests.unit.occupied import restore_brings


@pytest.mark.parametrize("state", [DomainState.SUSPENDED, DomainState.CRASHED])
def test_undo_starts_one_that_was_on_and_did_not_run(scene: Scene, state: DomainState) -> None:
    """A Windows that had gone to sleep was left off, and called off beforehand."""
    record = take_at_five(scene)
    scene.machine.domain = replace(scene.machine.domain, state=state)
    undo = roll_back(scene, record).undo
    assert scene.machine.count == 5
    done = roll_back(scene, undo)
    assert done.plan.is_started and done.state is DomainState.RUNNING
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["8", "8"]


def test_undo_leaves_one_off_that_was_about_to_end(scene: Scene) -> None:
    record = take_at_five(scene)
    scene.machine.domain = replace(scene.machine.domain, state=DomainState.OTHER)
    assert roll_back(scene, roll_back(scene, record).undo).state is DomainState.SHUTOFF
    assert scene.disk_data() == ["8", "8"]


def test_a_disk_that_is_not_in_its_definition_any_more_is_told_of(scene: Scene) -> None:
    """It was moved to another volume: the next start finds that one, and not what went back."""
    record = take_at_five(scene)
    assert roll_back(scene, record).plan.unbooted == ()
    scene.lvm.add_disk("vg0", "moved", data="8")
    had = scene.machine.disks
    scene.machine.boot_disks = (had[0], GuestDisk(target="vdb", device=Path("/dev/vg0/moved")))
    done = roll_back(scene, record)
    assert done.plan.unbooted == ("vdb",) and done.plan.others == ("vdb",)
    restore_brings(scene, had)
    scene.machine.boot_disks = (had[0], GuestDisk(target="vdb", device=Path("/no/volume")))
    assert roll_back(scene, record).plan.unbooted == (), "nobody knows"


def test_it_is_not_started_without_a_disk_that_goes_back(scene: Scene) -> None:
    """One that was attached without --config: a rollback succeeded, and the guest lacked it."""
    record = take_at_five(scene, with_memory=False)
    scene.machine.boot_disks = scene.machine.disks[:1]
    names = scene.lvm.names()
    with pytest.raises(VolumeRefused, match=r"disk vdb of demo@x, which has no memory") as refused:
        roll_back(scene, record)
    assert "virsh attach-disk demo /dev/vg1/demo-d1 vdb --config" in refused.value.hint()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and scene.machine.count == 8
    assert scene.lvm.names() == names
    scene.machine.boot_disks = None
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


def test_one_that_stays_off_gets_all_its_disks_back_whatever_its_definition_has(
    scene: Scene,
) -> None:
    """Nobody starts it: its owner may put the disk into its definition before he does."""
    scene.count(5)
    scene.hypervisor.stop(scene.machine.domain)
    record = take(scene)
    use(scene)
    assert scene.disk_data() == ["7", "7"]
    scene.machine.boot_disks = scene.machine.disks[:1]
    assert roll_back(scene, record).plan.unbooted == ("vdb",)
    assert scene.disk_data() == ["5", "5"]
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF


def test_one_that_libvirt_does_not_know_any_more_is_told_of(scene: Scene) -> None:
    record = take_at_five(scene)
    assert not roll_back(scene, record).plan.is_forgotten
    scene.hypervisor.forget(DOMAIN)
    assert roll_back(scene, record).plan.is_forgotten
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize("with_memory", [True, False])
def test_one_that_was_defined_anew_gets_its_uuid_back(scene: Scene, with_memory: bool) -> None:
    """By Terraform, say.  Renaming it was the only way told, and is none for disks alone."""
    record = take_at_five(scene, with_memory=with_memory)
    domain = scene.machine.domain
    scene.machine.domain = replace(domain, uuid=DomainUuid(UUID.replace("1", "9")))
    with pytest.raises(DomainRefused, match="it is not the domain that") as refused:
        roll_back(scene, record)
    assert f"shut it off and define it with the uuid {UUID} again" in refused.value.hint()
    renaming = "rename this one, while it is off: virsh domrename demo NEWNAME"
    assert (renaming in refused.value.hint()) is with_memory, "there is no other one"
    scene.machine.domain = domain
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


def test_one_that_was_renamed_for_another_is_told_by_its_name(scene: Scene) -> None:
    """It was told to undefine the other one and to define that with a uuid that is taken."""
    record = take_at_five(scene)
    was = scene.machine.domain
    scene.machine.domain = replace(was, uuid=DomainUuid(UUID.replace("1", "9")))
    scene.hypervisor.add(replace(was, name="archive", state=DomainState.SHUTOFF), ())
    with pytest.raises(DomainRefused, match="its name is archive now") as refused:
        roll_back(scene, record)
    assert "uuid" not in refused.value.hint()
    assert "virsh domrename archive demo" in refused.value.hint()


def test_disks_alone_need_a_domain(scene: Scene) -> None:
    """A transient one that was off was said not to exist, and how to make it exist was not."""
    record = take_at_five(scene, with_memory=False)
    scene.hypervisor.forget(DOMAIN)
    with pytest.raises(
        DomainRefused, match=f"{DOMAIN}@x has no memory to start it from"
    ) as refused:
        roll_back(scene, record)
    assert "virsh create FILE --paused" in refused.value.hint()
    assert scene.disk_data() == ["8", "8"]


def test_what_a_doctor_set_for_one_that_was_defined_anew_since_is_set_back(scene: Scene) -> None:
    """Another domain has its name by now, and nothing of that is touched."""
    take_at_five(scene)
    scene.hypervisor.set_for_capture = {UUID}
    scene.machine.domain = replace(scene.machine.domain, uuid=DomainUuid(UUID.replace("1", "9")))
    (done,) = consistency.repair_all(scene.host, None, Silent())
    assert "reset" in done and scene.hypervisor.touched() == ()
