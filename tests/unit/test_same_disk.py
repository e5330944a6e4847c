"""The disk that a rollback gives back is the user's: with the tags and properties it had."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import checking, repair
from snapvm.model import DomainState, Silent
from snapvm.refusals import VolumeRefused
from tests.fakes import mortal
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.scene import DOMAIN, GROUPS, UUID, Scene
from tests.unit.deeds import begun, roll_back


def disk_of(scene: Scene) -> FakeVolume:
    return scene.lvm.named("vg0", f"{DOMAIN}-d0")


@pytest.mark.parametrize("count", [18, 19, 20, 200])
def test_it_may_have_many_tags_of_its_own(tmp_path: Path, count: int) -> None:
    """An lvm that is told its orders on lines takes so many words and no more."""
    scene, record = begun(tmp_path)
    tags = {f"mine{number}" for number in range(count)}
    disk_of(scene).tags |= tags
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and disk_of(scene).tags == tags


def test_a_tag_of_its_own_may_look_like_a_comment(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    tags = {"#prod", "!a&b"}
    disk_of(scene).tags |= tags
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"] and disk_of(scene).tags == tags


def test_many_tags_bring_a_device_where_only_one_of_them_may_have_one(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    disk_of(scene).tags |= {f"mine{number}" for number in range(30)}
    scene.lvm.conf["activation/volume_list"] = "@mine7,vg1"
    roll_back(scene, record)
    assert disk_of(scene).active and scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize("thick", [(), GROUPS], ids=["thin", "thick"])
def test_it_keeps_what_was_set_of_it(tmp_path: Path, thick: tuple[str, ...]) -> None:
    scene, record = begun(tmp_path, *thick)
    disk_of(scene).autoactivated, disk_of(scene).read_ahead = False, "1048576"
    disk_of(scene).skipped = True
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]
    assert not disk_of(scene).autoactivated and disk_of(scene).read_ahead == "1048576"
    assert disk_of(scene).skipped and disk_of(scene).active
    other = scene.lvm.named("vg1", f"{DOMAIN}-d1")
    assert other.autoactivated and other.read_ahead == "auto" and not other.skipped


def test_it_keeps_it_when_the_rollback_is_finished_by_another(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    disk_of(scene).autoactivated, disk_of(scene).read_ahead = False, "0"
    disk_of(scene).skipped = True
    assert mortal.kill_at(scene, lambda scene: roll_back(scene, record), "after lvm lvchange 1")
    repair.finish_pending(scene.host, UUID, DOMAIN)
    assert scene.host.catalog.leftovers(UUID) == () and scene.disk_data() == ["5", "5"]
    assert not disk_of(scene).autoactivated and disk_of(scene).read_ahead == "0"
    assert disk_of(scene).skipped


def test_an_lvm_without_the_property_is_not_told_of_it(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    scene.lvm.is_old = True
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]


def test_lvm_is_asked_once_before_the_domain_is_ended(tmp_path: Path) -> None:
    """A report takes half of a second where a host has many volumes, and more."""
    scene, record = begun(tmp_path)
    done: list[str] = []
    scene.lvm.before = lambda argv: done.append(argv[1])
    scene.hypervisor.before = done.append
    roll_back(scene, record)
    assert done[: done.index("stop")].count("lvs") == 1


@pytest.mark.parametrize("thick", [(), GROUPS], ids=["thin", "thick"])
def test_one_that_is_read_only_is_left_as_it_is(tmp_path: Path, thick: tuple[str, ...]) -> None:
    """A thick one could not be written; LVM does not make one read-only that is."""
    scene, record = begun(tmp_path, *thick)
    scene.hypervisor.stop(scene.machine.domain)
    disk_of(scene).writable = False
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match=r"vg0/demo-d0 .*read-only") as refused:
        roll_back(scene, record)
    assert "lvchange --permission rw vg0/demo-d0" in refused.value.hint()
    assert scene.lvm.names() == before and scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    disk_of(scene).writable = True
    roll_back(scene, record)
    assert scene.disk_data() == ["5", "5"]
    assert checking.look(scene.host, None, Silent(), deep=False) == ()


def test_a_fixed_device_number_is_not_lost_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene, record = begun(tmp_path)
    disk_of(scene).has_fixed_minor, disk_of(scene).minor = True, 47
    roll_back(scene, record)
    assert "vg0/demo-d0 has a fixed device number" in caplog.text
    assert "lvchange --persistent y --minor 47 vg0/demo-d0" in caplog.text


def test_a_disk_that_grows_before_the_exchange_can_be_gone_back_to(tmp_path: Path) -> None:
    """To read a large image takes an hour; what was kept was called unusable, and to be deleted."""
    scene, record = begun(tmp_path)

    def grow(deed: str) -> None:
        if deed == "freeze" and not grown:
            grown.append(disk_of(scene))
            disk_of(scene).size_bytes <<= 1

    grown: list[FakeVolume] = []
    scene.hypervisor.before = grow
    undo = roll_back(scene, record).undo
    assert undo.disks[0].size_bytes == 2 * undo.disks[1].size_bytes
    assert checking.look(scene.host, None, Silent(), deep=False) == ()
    roll_back(scene, undo)
    assert scene.disk_data() == ["8", "8"] and disk_of(scene).size_bytes == grown[0].size_bytes
