"""Which words for a device go with the name of its volume, and which stay with the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import planning
from snapvm.consistency import TakeRequest, rollback, take
from snapvm.lvm import devicename
from snapvm.model import Domain, DomainState, GuestDisk, LvRef, LvUuid, Silent
from snapvm.refusals import DiskRefused, VolumeRefused
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene

VOLUME = LvRef(vg="vg-0", lv="web", uuid=LvUuid("u"))


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """A /dev as udev makes it, and what an administrator has added."""
    dev = tmp_path / "dev"
    for folder in ("vg-0", "mapper", "disk/by-id", "block"):
        (dev / folder).mkdir(parents=True)
    (dev / "dm-3").touch()
    (dev / "mapper" / "plain-node").touch()
    links = {
        "vg-0/web": "../dm-3",
        "mapper/vg--0-web": "../dm-3",
        "disk/by-id/dm-uuid-LVM-x": "../../dm-3",
        "disk/by-id/by-name": "../../vg-0/web",
        "block/253:3": "../dm-3",
        "to-name": "vg-0/web",
        "to-mapper": str(dev / "mapper/vg--0-web"),
        "to-link": "to-name",
        "to-uuid": "disk/by-id/dm-uuid-LVM-x",
        "to-node": "dm-3",
        "round": "round",
        "folder": "vg-0",
        "ids": "disk/by-id",
    }
    for name, target in links.items():
        (dev / name).symlink_to(target)
    return dev


@pytest.mark.parametrize(
    "name",
    [
        "vg-0/web",
        "mapper/vg--0-web",
        "to-name",
        "to-mapper",
        "to-link",
        "folder/web",
        "mapper/../vg-0/web",
    ],
)
def test_names_that_go_with_it(dev: Path, name: str) -> None:
    assert devicename.goes_with(dev / name, VOLUME, dev)
    assert devicename.goes_with(Path(f"/{dev}", name), VOLUME, dev), "two slashes"


@pytest.mark.parametrize(
    "name",
    [
        "dm-3",
        "disk/by-id/dm-uuid-LVM-x",
        "disk/by-id/by-name",
        "block/253:3",
        "to-uuid",
        "to-node",
        "round",
        "ids/dm-uuid-LVM-x",
        "vg-0/../dm-3",
        "mapper/plain-node",
        "not-there",
    ],
)
def test_names_that_stay_behind(dev: Path, name: str) -> None:
    assert not devicename.goes_with(dev / name, VOLUME, dev)
    assert not devicename.goes_with(Path(f"/{dev}", name), VOLUME, dev), "two slashes"


def test_a_volume_that_is_not_there_yet_goes_by_its_name() -> None:
    assert devicename.goes_with(
        Path("/dev/nowhere-vg/lv"), LvRef(vg="nowhere-vg", lv="lv", uuid=VOLUME.uuid)
    )


# --- what becomes of a domain that names its disks so ---------------------------------------------


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain with a snapshot of its disks, of before it was told to name one by a link."""
    scene = make_scene(tmp_path)
    take(scene.host, TakeRequest(domain=DOMAIN, name="x", with_memory=False), Silent())
    link = tmp_path / "vg0" / "demo-d0"
    link.parent.mkdir()
    link.symlink_to("/dev/disk/by-id/dm-uuid-LVM-x")
    disks = scene.machine.disks
    scene.machine.disks = (GuestDisk(target="vda", device=link), *disks[1:])
    return scene


def test_a_disk_whose_name_would_stay_behind_is_not_taken(scene: Scene) -> None:
    domain: Domain = scene.machine.domain
    report = scene.host.lvm.report()
    with pytest.raises(DiskRefused, match="cannot give to another") as refused:
        planning.resolve(domain, scene.machine.disks, report, scene.host.lvm.uuid_of_device)
    assert "/dev/vg0/demo-d0" in refused.value.hint()
    with pytest.raises(DiskRefused):
        take(scene.host, TakeRequest(domain=DOMAIN), Silent())
    assert scene.ids() == ["x"]


@pytest.mark.parametrize("is_skipped", [False, True])
def test_a_disk_without_a_device_is_called_inactive(tmp_path: Path, is_skipped: bool) -> None:
    """A domain that is off, on a host that activates its volumes when it is started."""
    scene = make_scene(tmp_path, state=DomainState.SHUTOFF)
    volume = scene.lvm.named("vg0", "demo-d0")
    volume.active, volume.skipped = False, is_skipped
    with pytest.raises(DiskRefused, match="vg0/demo-d0 is not active") as refused:
        take(scene.host, TakeRequest(domain=DOMAIN), Silent())
    flag = " --ignoreactivationskip" if is_skipped else ""
    assert refused.value.hint() == f"lvchange -ay{flag} vg0/demo-d0"


def test_a_disk_that_lvm_does_not_see_comes_with_where_to_look(tmp_path: Path) -> None:
    """The kernel has it, and the devices file of LVM lacks the device below it."""
    scene = make_scene(tmp_path)
    scene.lvm.away["vg1"] = {}
    with pytest.raises(DiskRefused, match="does not report") as refused:
        take(scene.host, TakeRequest(domain=DOMAIN), Silent())
    assert "lvs /dev/vg1/demo-d1" in refused.value.hint()
    assert "lvmdevices" in refused.value.hint()


def test_a_domain_that_would_be_started_on_the_former_disk_does_not_go_back(scene: Scene) -> None:
    names = scene.lvm.names()
    (record,) = scene.host.catalog.records(UUID)
    with pytest.raises(VolumeRefused, match="cannot give to another"):
        rollback(scene.host, record, paused=False, progress=Silent())
    assert scene.lvm.names() == names and scene.ids() == ["x"]
