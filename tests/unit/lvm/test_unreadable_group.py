"""A group whose metadata LVM cannot read: its report of all others serves, and it is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.failures import CommandFailed
from snapvm.lvm.volumes import Lvm
from snapvm.refusals import GroupAway, Refused
from tests.fakes.lvm import FakeLvm
from tests.unit.deeds import begun, delete, roll_back, take


def test_a_group_of_somebody_else_keeps_nobody_from_his_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every command of snapvm ended with: `lvm lvs ...` ended with status 5: it said nothing."""
    scene, record = begun(tmp_path)
    scene.lvm.add_disk("bad", "other", pool="")
    scene.lvm.unreadable.add("bad")
    scene.count(2)
    roll_back(scene, record)
    take(scene, "y")
    assert "y" in scene.ids()
    (told,) = caplog.messages
    assert told.startswith("LVM cannot read the volume group bad: Internal error: LV segments")


def test_nothing_is_made_of_a_group_that_cannot_be_read(tmp_path: Path) -> None:
    """Nor is what it has taken for gone."""
    scene, record = begun(tmp_path)
    before = scene.lvm.names()
    scene.lvm.unreadable.add("vg1")
    with pytest.raises(Refused):
        take(scene, "y")
    with pytest.raises(GroupAway):
        roll_back(scene, record)
    with pytest.raises(GroupAway):
        delete(scene, record)
    assert scene.lvm.names() == before and scene.ids() == [record.id]
    scene.lvm.unreadable.clear()
    scene.count(2)
    roll_back(scene, record)


OF_2_03_16 = r"""
    ,
    "log": [
        {"log_type":"error", "log_message":"Volume group \"vg9\" is no more", "log_errno":"-1"},
        {"log_type":"status", "log_message":"failure", "log_errno":"-1", "log_ret_code":"5"}
    ]
}
"""
"""The end of what the lvs of Debian 12 prints when it fails; it says little elsewhere."""


def test_what_lvm_says_in_its_report_alone_is_told() -> None:
    lvm = FakeLvm()

    def fail(argv: tuple[str, ...]) -> None:
        stdout = f'{{"report": [{{"lv": []}}]{OF_2_03_16}'
        raise CommandFailed(argv=argv, status=5, stderr="", stdout=stdout)

    lvm.before = fail
    with pytest.raises(CommandFailed, match=r'status 5: Volume group "vg9" is no more\Z'):
        Lvm(lvm).report()
