"""A host whose lvm.conf is not the default one: snapvm is told the same by its lvm."""

from __future__ import annotations

import json
import time

import pytest

from snapvm import diagnosis
from snapvm.attention import LeftBehind
from snapvm.failures import CommandFailed, SnapshotFailed
from snapvm.lvm import reading
from snapvm.lvm.volumes import Lvm
from snapvm.model import DomainState
from snapvm.refusals import HostLacks
from tests.fakes.lvm import FakeLvm
from tests.fakes.lvmtalk import FakeConversation
from tests.fakes.lvmwords import configured, parse
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.deeds import delete, roll_back, take


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("log/silent", "1"),
        ("log/command_names", "1"),
        ("log/prefix", "lvm: "),
        ("log/verbose", "4"),
        ("log/report_command_log", "0"),
        ("log/report_command_log", "1"),
        ("report/output_format", "json"),
        ("report/compact_output", "1"),
        ("report/prefixes", "1"),
        ("report/list_item_separator", ";"),
    ],
)
def test_an_lvm_that_talks_otherwise_serves(scene: Scene, setting: str, value: str) -> None:
    scene.lvm.conf[setting] = value
    scene.lvm.said_at_a_scan = ["WARNING: PV on /dev/sdb was changed recently."] * 50
    scene.count(3)
    record = take(scene, "a")
    scene.count(2)
    roll_back(scene, record)
    assert scene.disk_data() == ["3", "3"] and scene.machine.count == 3


@pytest.mark.parametrize("setting", ["log/silent", "log/command_names", "readline"])
def test_a_failure_is_told_by_a_silent_lvm_too(scene: Scene, setting: str) -> None:
    scene.lvm.conf[setting] = "1"
    scene.lvm.is_echoing = setting == "readline"
    before = scene.lvm.names()

    def take_the_name(deed: str) -> None:
        if deed == "window":
            for disk in ("demo-d0", "demo-d1"):
                scene.lvm.volumes = [v for v in scene.lvm.volumes if v.name != disk]

    scene.hypervisor.before = take_the_name
    with pytest.raises(SnapshotFailed, match="Failed to find logical volume") as failed:
        take(scene, "a")
    assert "lvm>" not in str(failed.value)
    assert scene.lvm.names() < before and scene.ids() == []


def test_an_lvm_that_takes_no_orders_is_told_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of NixOS, built without readline: the answer was its list of commands."""
    record = take(scene, "a")
    before = scene.lvm.names()

    def refuse(*_: object, **__: object) -> tuple[str, ...]:
        said = "  Please supply an LVM command.\n  Available lvm commands:"
        raise CommandFailed(argv=("lvm", "version"), status=3, stderr=said)

    monkeypatch.setattr(FakeConversation, "ask", refuse)
    with pytest.raises(HostLacks, match="readline"):
        take(scene, "b")
    with pytest.raises(HostLacks, match="readline"):
        roll_back(scene, record)
    assert scene.lvm.names() == before and scene.ids() == ["a"]
    assert scene.machine.domain.state is DomainState.RUNNING
    (told,) = diagnosis.look(scene.host, DOMAIN).refusals
    assert isinstance(told, HostLacks)


def test_a_name_can_be_had_again_though_lvm_keeps_the_history_of_volumes(scene: Scene) -> None:
    """LVM refuses the name of a volume that was, and only once the domain stands still."""
    scene.lvm.conf["metadata/record_lvs_history"] = "1"
    for _ in range(2):
        record = take(scene, "a")
        delete(scene, record)
    assert scene.ids() == [] and scene.lvm.history == set()


class CutShort(FakeLvm):
    """An lvm whose first reports end too early."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def _lvs(self, words: list[str]) -> str:
        self.left -= 1
        said = super()._lvs(words)
        return said if self.left < 0 else said[: len(said) // 2]


def test_the_lvms_of_the_window_wait_for_each_other(scene: Scene) -> None:
    """With wait_for_locks=0 in lvm.conf the second would find the group locked by the first."""
    scene.lvm.conf["global/wait_for_locks"] = "0"

    def take_long(argv: tuple[str, ...]) -> None:
        if "snapshot" in argv or "--snapshot" in argv:
            time.sleep(0.1)

    scene.lvm.before = take_long
    take(scene, "a")
    assert scene.ids() == ["a"]


def test_no_lvm_fails_beside_one_that_works_for_another_domain(scene: Scene) -> None:
    """With wait_for_locks=0 in lvm.conf a delete was half done, with status 7."""
    hasty: list[tuple[str, ...]] = []

    def note(argv: tuple[str, ...]) -> None:
        if argv[0] == "lvm" and argv[1] != "lvmconfig":  # which takes no lock
            options, _ = parse(list(argv[2:]))
            if configured(options).get("global/wait_for_locks") != "1":
                hasty.append(argv)

    scene.lvm.before = note
    record = take(scene, "a")
    roll_back(scene, record)
    delete(scene, record)
    assert hasty == []


def test_a_look_of_udevs_into_a_device_is_waited_for(scene: Scene) -> None:
    """With retry_deactivation=0 in lvm.conf LVM calls the device in use, and gives up."""
    scene.lvm.conf["activation/retry_deactivation"] = "0"
    scene.count(3)
    record = take(scene, "a")
    scene.count(2)
    done = roll_back(scene, record)
    assert scene.disk_data() == ["3", "3"]
    delete(scene, done.undo)
    delete(scene, record)
    assert scene.ids() == []


def test_a_failure_is_told_where_lvm_reports_it(scene: Scene) -> None:
    """With report_command_log=1 in lvm.conf nothing stands on standard error: "it said nothing"."""
    scene.lvm.conf["log/report_command_log"] = "1"
    record = take(scene, "a")

    def move(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove":
            scene.lvm.named(record.disks[0].snapshot.vg, record.disks[0].snapshot.lv).moving = True

    scene.lvm.before = move
    with pytest.raises(LeftBehind, match="locked logical volume"):
        delete(scene, record)


def test_room_is_made_where_lvm_reports_that_there_is_none(scene: Scene) -> None:
    """What it archives nothing for is done all the same, with report_command_log=1 too."""
    scene.lvm.conf["log/report_command_log"] = "1"
    record = take(scene, "a")
    scene.lvm.has_no_room = True
    delete(scene, record)
    assert scene.ids() == []


def test_nobody_waits_for_a_daemon_while_the_domain_stands_still(scene: Scene) -> None:
    """A stuck lvmdbusd holds each lvm up for 25 s, and a third snapshot waits for the first."""
    scene.lvm.has_stuck_daemon = True
    scene.count(3)
    record = take(scene, "a")
    scene.count(2)
    roll_back(scene, record)
    assert scene.disk_data() == ["3", "3"] and scene.machine.count == 3


OF_2_03_16 = """\
{
    "report": [
        {
            "lv": [
                {ROW}
            ]
        }
    ]
    ,
    "log": [
        {"log_type":"warn", "log_message":"WARNING: VG name vg0 is used by VGs"},
        {"log_type":"warn", "log_message":"Fix it\t with vgrename"},
    ]
}
"""
"""What the lvs of Debian 12 prints when it warns of something; the tab is made up."""


def test_a_log_that_is_no_json_does_not_spoil_the_report() -> None:
    row = dict.fromkeys(reading.FIELDS, "") | {"lv_name": "a", "vg_name": "vg0", "lv_uuid": "u"}
    numbers = {name for name in reading.FIELDS if name.startswith("vg_")} - {"vg_name"}
    numbers |= {"lv_size"}
    row |= dict.fromkeys(numbers, "1")
    text = OF_2_03_16.replace("{ROW}", json.dumps(row))
    assert [str(volume.ref) for volume in reading.parse(text).volumes] == ["vg0/a"]


def test_a_report_that_is_not_whole_is_asked_for_again() -> None:
    lvm = CutShort(2)
    lvm.add_pool("vg0")
    assert [volume.name for volume in Lvm(lvm).report().volumes] == ["pool"]


def test_a_report_that_is_never_whole_is_no_report() -> None:
    with pytest.raises(CommandFailed, match="could not be read"):
        Lvm(CutShort(9)).report()
