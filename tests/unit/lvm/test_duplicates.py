"""A group with a physical volume that LVM sees on two devices: LVM does not change such a group."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import checking, consistency, diagnosis
from snapvm.failures import CommandFailed
from snapvm.lvm.volumes import Lvm
from snapvm.model import Silent
from snapvm.refusals import VolumeRefused
from tests.fakes.lvm import FakeLvm
from tests.fakes.scene import DOMAIN
from tests.unit.deeds import begun, delete, roll_back, take


def asked(lvm: FakeLvm) -> list[str]:
    """Return the verbs of what LVM is asked from now on."""
    verbs: list[str] = []
    lvm.before = lambda argv: verbs.append(argv[1])
    return verbs


def test_it_is_refused_before_the_domain_stands_still(tmp_path: Path) -> None:
    """Every take paused the domain to be told so by LVM, and `doctor` found nothing in the way."""
    scene, _ = begun(tmp_path)
    scene.lvm.doubled["vg0"] = "/dev/sdb"
    deeds: list[str] = []
    scene.hypervisor.before = deeds.append
    before = scene.lvm.names()
    with pytest.raises(VolumeRefused, match="on /dev/sdb too") as refused:
        take(scene, "y")
    assert "vgimportclone /dev/sdb" in refused.value.hint()
    assert deeds == ["check_capture"] and scene.lvm.names() == before
    assert any("/dev/sdb" in str(each) for each in diagnosis.look(scene.host, DOMAIN).refusals)


def test_a_monitor_is_told_of_it(tmp_path: Path) -> None:
    scene, _ = begun(tmp_path)
    assert not checking.look(scene.host, None, Silent(), deep=False)
    scene.lvm.doubled["vg0"] = "/dev/sdb"
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert found.subject == "vg0" and "on /dev/sdb too" in found.problem


def test_nothing_is_begun_that_lvm_would_not_end(tmp_path: Path) -> None:
    """A delete hid the record, and every command on the domain ended with status 7 from then on."""
    scene, record = begun(tmp_path)
    scene.lvm.doubled["vg0"] = "/dev/sdb"
    with pytest.raises(VolumeRefused, match="physical volume"):
        delete(scene, record)
    with pytest.raises(VolumeRefused, match="physical volume"):
        consistency.prune(scene.host, [[record]], Silent())
    with pytest.raises(VolumeRefused, match="physical volume"):
        roll_back(scene, record)
    assert scene.ids() == [record.id]
    scene.lvm.doubled.clear()
    scene.count(2)
    roll_back(scene, record)
    delete(scene, record)


def test_one_of_somebody_else_keeps_nobody_from_his_own(tmp_path: Path) -> None:
    """A guest's own group is seen twice where LVM looks into volumes (scan_lvs=1)."""
    scene, record = begun(tmp_path)
    scene.lvm.doubled["guests"] = "/dev/vg0/demo-d0"
    verbs = asked(scene.lvm)
    scene.host.lvm.report()
    assert verbs == ["lvs"], "it may be in a window"
    take(scene, "y")
    delete(scene, record)
    assert verbs.count("pvs") == 1, "it is asked for once, and not for each report"


def test_an_lvm_that_changes_such_a_group_does_so_for_snapvm_too(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    scene.lvm.doubled["vg0"] = "/dev/sdb"
    scene.lvm.conf["devices/allow_changes_with_duplicate_pvs"] = "1"
    take(scene, "y")
    delete(scene, record)


def test_nothing_more_is_asked_where_lvm_warns_of_nothing(tmp_path: Path) -> None:
    scene, _ = begun(tmp_path)
    verbs = asked(scene.lvm)
    scene.host.lvm.report()
    assert verbs == ["lvs"]


def test_an_lvm_that_does_not_say_of_which_group_it_warns_is_left_to_refuse() -> None:
    lvm = FakeLvm()
    lvm.add_disk("vg0", "d0", pool="")
    lvm.doubled["vg0"] = "/dev/sdb"

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] == "pvs":
            raise CommandFailed(argv=argv, status=5, stderr="no")

    lvm.before = fail
    assert not Lvm(lvm).report().doubled()
    lvm.before = lambda _argv: None
    assert Lvm(lvm).report().doubled() == {"vg0": "/dev/sdb"}
