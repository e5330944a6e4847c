"""A rollback and the disks that somebody else has by now: what is left on them, and who runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import rollbackplan
from snapvm.hypervisor.base import Reliance
from snapvm.lvm.holders import Holder
from snapvm.model import Domain, DomainState, DomainUuid, GuestDisk, OmittedDisk, Record
from snapvm.refusals import DiskRefused, DomainRefused, VolumeRefused
from tests.fakes.machine import Machine
from tests.fakes.overlay import disk_xml, make_overlay
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import roll_back, take_at_five

KINDS = {"thin": (), "thick": ("vg0", "vg1")}
OTHER = "other"


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return make_scene(tmp_path, thick=request.param)


def detach(scene: Scene) -> None:
    """Take the second disk away from the domain."""
    scene.machine.disks = scene.machine.disks[:1]
    for volume in scene.machine.held[1:]:
        volume.opened = False
    del scene.machine.held[1:]


def restore_brings(scene: Scene, disks: tuple[GuestDisk, ...]) -> None:
    """Have a restore give the domain these disks, which its image names."""

    def before(deed: str) -> None:
        if deed == "restore":
            scene.machine.disks = disks

    scene.hypervisor.before = before


def move(scene: Scene) -> Machine:
    """Give the second disk to another domain, which runs and counts on it."""
    disk = scene.machine.disks[1]
    detach(scene)
    other = replace(scene.machine.domain, name=OTHER, uuid=DomainUuid(UUID.replace("1", "9")))
    machine = scene.hypervisor.add(other, (disk,))
    machine.count = 100
    scene.hypervisor.step(OTHER)
    return machine


def volumes(scene: Scene) -> dict[str, tuple[str, str]]:
    """Return what every volume is, and holds, by name."""
    return {f"{v.vg}/{v.name}": (v.uuid, v.data) for v in scene.lvm.volumes}


def assert_untouched(scene: Scene, before: dict[str, tuple[str, str]], record: Record) -> None:
    assert volumes(scene) == before
    assert scene.ids() == [record.id] and scene.host.catalog.leftovers(UUID) == ()


@pytest.mark.parametrize("disk_only", [False, True])
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF])
def test_a_disk_that_another_domain_runs_on_is_refused(
    scene: Scene, state: DomainState, disk_only: bool
) -> None:
    record = take_at_five(scene, with_memory=not disk_only)
    move(scene)
    if state is DomainState.PAUSED:
        scene.hypervisor.suspend(DOMAIN)
    if state is DomainState.SHUTOFF:
        scene.hypervisor.stop(scene.machine.domain)
    before = volumes(scene)
    with pytest.raises(VolumeRefused, match=r"vg1/demo-d1 .*something else"):
        roll_back(scene, record)
    assert_untouched(scene, before, record)
    assert scene.hypervisor.state_of(DOMAIN) is state
    scene.hypervisor.step(OTHER)
    assert scene.lvm.named("vg1", "demo-d1").data == "102"


@pytest.mark.parametrize("disk_only", [False, True])
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.SHUTOFF])
def test_a_disk_that_the_host_has_mapped_is_refused(
    scene: Scene, state: DomainState, disk_only: bool
) -> None:
    """The domain has it open, and so have partitions that kpartx has mapped."""
    record = take_at_five(scene, with_memory=not disk_only)
    disk = scene.lvm.named("vg1", "demo-d1")
    remedy = "kpartx -d /dev/vg1/demo-d1"
    disk.lies_on = [Holder(device=Path("/dev/mapper/vg1-demo--d1p1"), remedy=remedy)]
    if state is DomainState.SHUTOFF:
        scene.hypervisor.stop(scene.machine.domain)
    disk.opened = True
    before = volumes(scene)
    with pytest.raises(VolumeRefused, match=r"vg1/demo-d1 .*/dev/mapper/vg1-demo--d1p1") as refused:
        roll_back(scene, record)
    assert remedy in refused.value.hint()
    assert_untouched(scene, before, record)
    assert scene.hypervisor.state_of(DOMAIN) is state
    disk.lies_on, disk.opened = [], state is DomainState.RUNNING
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


def test_a_disk_that_nobody_uses_comes_back_with_memory(scene: Scene) -> None:
    record = take_at_five(scene)
    restore_brings(scene, scene.machine.disks)
    detach(scene)
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


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


def attach(scene: Scene) -> None:
    """Give the domain a third disk."""
    volume = scene.lvm.add_disk("vg0", "demo-d2", data="8")
    scene.machine.disks += (GuestDisk(target="vdc", device=Path("/dev/vg0/demo-d2")),)
    scene.machine.held.append(volume)
    volume.opened = True


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


def test_nor_beside_a_disk_that_is_no_volume(scene: Scene) -> None:
    record = take_at_five(scene, with_memory=False)
    scene.machine.disks += (GuestDisk(target="sdb", device=Path("/dev/sdz")),)
    with pytest.raises(DomainRefused, match="has disk sdb"):
        roll_back(scene, record)


@pytest.mark.parametrize("target", ["vdc", "vdb"])
def test_one_that_is_off_is_not_booted_beside_it_either(
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


def test_one_that_is_off_goes_back_though_its_volumes_have_no_devices(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take_at_five(scene, with_memory=False)
    scene.hypervisor.stop(scene.machine.domain)
    for number in range(2):
        scene.lvm.named(f"vg{number}", f"demo-d{number}").active = False
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


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


def is_a_file(domain: Domain) -> object:
    """Tell of no drives, as libvirt's driver does."""
    raise DiskRefused(domain=domain.name, target="vdc", why="it is the file /x")


def test_a_domain_that_is_not_known_any_more_comes_back(scene: Scene) -> None:
    record = take_at_five(scene)
    scene.hypervisor.forget(DOMAIN)
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_unless_somebody_has_got_a_disk_of_it(scene: Scene) -> None:
    record = take_at_five(scene)
    move(scene)
    scene.hypervisor.forget(DOMAIN)
    before = volumes(scene)
    with pytest.raises(VolumeRefused, match="something else"):
        roll_back(scene, record)
    assert_untouched(scene, before, record)


def test_a_domain_whose_volumes_cannot_be_said_is_shut_off_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = take_at_five(scene)
    monkeypatch.setattr(scene.hypervisor, "drives", is_a_file)
    before = volumes(scene)
    with pytest.raises(DomainRefused, match="the file /x") as refused:
        roll_back(scene, record)
    assert "shut it off" in refused.value.hint()
    assert_untouched(scene, before, record)
    scene.hypervisor.stop(scene.machine.domain)
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
