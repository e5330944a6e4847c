"""Names in /dev that udev moves late, and LVM does not wait: activation/udev_sync=0, or no udevd.

LVM itself makes no link where udev is to make it (activation/verify_udev_operations=0), so that
after a rename the disk's name may lead to the volume that was the disk.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import retry
from snapvm.attention import NotStarted
from snapvm.failures import RollbackFailed
from snapvm.lvm.device import NotAVolume
from snapvm.model import DmUuid, DomainState
from tests.fakes.scene import DOMAIN, UUID
from tests.unit.deeds import begun, die, mend, roll_back


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_domain_is_not_restored_upon_the_disk_that_it_left(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    names = scene.lvm.names()
    scene.lvm.lags = {}
    with pytest.raises(RollbackFailed, match="udev"):
        roll_back(scene, record)
    scene.lvm.lags = None
    assert scene.lvm.names() == names
    assert scene.ids() == [record.id] and scene.host.catalog.leftovers(UUID) == ()
    scene.count(1)
    assert scene.machine.count == 9 and scene.disk_data() == ["9", "9"]
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_a_name_that_comes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, record = begun(tmp_path)
    scene.lvm.lags = {}
    ask = scene.host.lvm.uuid_of_device
    missed: set[Path] = set()

    def uuid_of_device(path: Path) -> DmUuid:
        """A clone's name is there at the second look; a disk's leads elsewhere from then on."""
        assert scene.lvm.lags is not None
        if ".roll." in path.name and path not in missed:
            missed.add(path)
            raise NotAVolume(f"{path}: No such file or directory")
        try:
            return ask(path)
        finally:
            scene.lvm.lags.pop((path.parent.name, path.name), None)

    monkeypatch.setattr(scene.host.lvm, "uuid_of_device", uuid_of_device)
    roll_back(scene, record)
    assert len(missed) == 2
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    scene.count(1)
    assert scene.disk_data() == ["6", "6"]


@pytest.mark.usefixtures("impatient")
def test_a_repair_does_not_restore_a_domain_upon_the_disk_that_it_left(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    former = scene.lvm.named("vg0", "demo-d0")
    die(scene, record, "restore")
    scene.lvm.lags = {("vg0", "demo-d0"): former}
    with pytest.raises(NotStarted, match="udev"):
        mend(scene)
    assert former.data == "8" and not former.opened
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    scene.lvm.lags = None
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]
    assert former.data == "8"
