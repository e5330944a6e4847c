"""A rollback and the disks that somebody else has by now: what is left on them, and who runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import retry
from snapvm.attention import LeftBehind
from snapvm.lvm.holders import Holder
from snapvm.model import DomainState, DomainUuid
from snapvm.refusals import DomainRefused, VolumeRefused
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.machine import Machine
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import roll_back, take_at_five
from tests.unit.occupied import (
    OTHER,
    assert_untouched,
    detach,
    is_a_file,
    restore_brings,
    volumes,
)


@pytest.fixture(autouse=True)
def _used_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a disk here does not let it go, with one exception."""
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)


def move(scene: Scene) -> Machine:
    """Give the second disk to another domain, which runs and counts on it."""
    disk = scene.machine.disks[1]
    detach(scene)
    other = replace(scene.machine.domain, name=OTHER, uuid=DomainUuid(UUID.replace("1", "9")))
    machine = scene.hypervisor.add(other, (disk,))
    machine.count = 100
    scene.hypervisor.step(OTHER)
    return machine


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
    with pytest.raises(VolumeRefused, match=r"vg1/demo-d1 .*something other"):
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


@pytest.mark.parametrize("disk_only", [False, True])
def test_a_disk_that_is_only_looked_into_goes_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, disk_only: bool
) -> None:
    """As udev does when the last user of a device has closed it: the domain was shut off just now.

    `virsh destroy DOM && snapvm rollback DOM@ID` was refused now and then.
    """
    monkeypatch.setattr(retry, "_SOON_SECONDS", 10.0)
    record = take_at_five(scene, with_memory=not disk_only)
    scene.hypervisor.stop(scene.machine.domain)
    disk = scene.lvm.named("vg1", "demo-d1")
    looks = iter([True, True])

    def before(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvs" and (look := next(looks, None)) is not None:
            disk.opened = look
        elif argv[1] == "lvs" and not scene.machine.held:
            disk.opened = False

    scene.lvm.before = before
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("verb", ["lvcreate", "lvrename"])
def test_a_clone_that_the_host_has_taken_is_not_made_a_disk(tmp_path: Path, verb: str) -> None:
    """A guest has an array on its disk: udev lets mdadm have it as soon as there is a device.

    It may also be that something else has it somewhat later.
    """
    scene = make_scene(tmp_path)
    record = take_at_five(scene)
    clones: list[FakeVolume] = []

    def assemble(argv: tuple[str, ...]) -> None:
        for volume in scene.lvm.volumes if argv[1] == verb else ():
            if ".roll." in volume.name and volume not in clones:
                remedy = "mdadm --stop /dev/md127"
                volume.lies_on = [Holder(device=Path("/dev/md127"), remedy=remedy)]
                volume.opened = True
                clones.append(volume)

    scene.lvm.after = assemble
    with pytest.raises(LeftBehind, match=r"/dev/md127 of this host.*AUTO -all.*mdadm --stop"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.disk_data() == ["8", "8"] and len(clones) == 2
    scene.lvm.after = lambda _argv: None
    for clone in clones:
        clone.lies_on, clone.opened = [], False
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


def test_a_disk_that_nobody_uses_comes_back_with_memory(scene: Scene) -> None:
    record = take_at_five(scene)
    restore_brings(scene, scene.machine.disks)
    detach(scene)
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_one_that_is_off_goes_back_though_its_volumes_have_no_devices(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take_at_five(scene, with_memory=False)
    scene.hypervisor.stop(scene.machine.domain)
    for number in range(2):
        scene.lvm.named(f"vg{number}", f"demo-d{number}").active = False
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


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
    with pytest.raises(VolumeRefused, match="something other"):
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
