"""The scripts of docs/automation.md, run with programs that say what they are told and may fail."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.scene import DOMAIN, Scene
from tests.house.source import ROOT
from tests.unit.cli.conftest import Call

SCRIPTS = re.findall(
    r"^```(?:ba)?sh\n(.*?)^```",
    (ROOT / "docs" / "automation.md").read_text(),
    re.MULTILINE | re.DOTALL,
)

pytestmark = pytest.mark.skipif(
    None in (shutil.which("bash"), shutil.which("jq")), reason="bash or jq is not installed"
)


@dataclass
class Desk:
    """Where a script is run: programs of its own, and what they were told."""

    folder: Path
    told: list[str] = field(default_factory=list)
    said: str = ""
    """What the script printed."""

    def run(self, part: str, fails: Mapping[str, int], *, says: str = "", ends: str = "") -> int:
        """Run the script that has this in it; return how it ended.

        A program ends with the status that ``fails`` has for the first words it begins with. What
        ``says`` is what ``virsh``, ``xl``, ``snapvm take`` or ``snapvm check`` prints. The script
        ``ends`` with that.
        """
        (script,) = (each for each in SCRIPTS if part in each)
        (self.folder / "said").write_text(says)
        for name in ("virsh", "xl", "snapvm", "lvchange", "borg", "pcs", "jq"):
            self._put(name, fails)
        here = f"PATH={self.folder}:$PATH\n"
        script = re.sub(r"^PATH=.*\n", "", script, flags=re.MULTILINE)
        shell = "bash" if "<<<" in script else "sh"
        argv = [shell, "-c", here + script + ends]
        ended = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=20)
        log = self.folder / "log"
        self.told = log.read_text().splitlines() if log.exists() else []
        self.said = ended.stdout
        return ended.returncode

    def _put(self, name: str, fails: Mapping[str, int]) -> None:
        cases = "".join(
            f"    {shlex.quote(words)}*) exit {status} ;;\n" for words, status in fails.items()
        )
        text = (
            f'#!/bin/sh\necho "{name} $*" >>{self.folder}/log\n'
            f'case "{name} $*" in\n{cases}'
            f'    "virsh "*|"xl "*|"snapvm take "*|"snapvm check "*) cat {self.folder}/said ;;\n'
            f'    "jq "*) exec {shutil.which("jq")} "$@" ;;\nesac\n'
        )
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o700)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder with nothing in it yet."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return Desk(folder)


NIGHTLY = "virsh list --name"


def test_a_night_takes_every_domain_whatever_its_name(desk: Desk) -> None:
    """One with a space was two that do not exist, and one with an asterisk the files there."""
    assert desk.run(NIGHTLY, {}, says="web\nmy vm\n*\n-x\n\n") == 0
    names = [line.partition("--wait 600 -- ")[2] for line in desk.told if " take " in line]
    assert names == ["web", "my vm", "*", "-x"]
    assert desk.told[-1].startswith("snapvm prune --all")
    assert desk.run(NIGHTLY, {"virsh": 1}) == 1


XL_LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  2048     2     r-----      61.5
web                                          3   512     1     -b----       9.8
-x                                          12   512     1     --p---       0.3
"""


def test_a_night_on_xen_takes_every_domain_but_the_control_domain(desk: Desk) -> None:
    assert desk.run("xl list", {"xl list": 5}, says=XL_LIST) == 5
    assert desk.run("xl list", {}, says=XL_LIST, ends='echo "$domains"') == 0
    assert desk.said == "web\n-x\n"


def test_a_night_ends_with_what_wants_somebody(desk: Desk) -> None:
    """It was the status of the last failure, perhaps of a domain that was busy."""
    fails = {"snapvm take --wait 600 -- web": 8, "snapvm take --wait 600 -- db": 5}
    assert desk.run(NIGHTLY, fails, says="web\ndb\nmail\n") == 8
    assert len(desk.told) == 5, "all the others, and prune, had their turn"
    del fails["snapvm take --wait 600 -- web"]
    assert desk.run(NIGHTLY, fails, says="web\ndb\nmail\n") == 5


@pytest.mark.parametrize(
    ("status", "is_managed"),
    [(0, True), (4, True), (5, False), (7, False), (8, False), (137, False)],
)
def test_a_cluster_does_not_start_what_a_rollback_left_off(
    desk: Desk, status: int, is_managed: bool
) -> None:
    """It had the cluster manage the domain again, which starts it in the middle of a rollback."""
    assert desk.run("pcs", {"snapvm rollback": status}) == status
    assert ("pcs resource manage web" in desk.told) is is_managed
    assert desk.run("pcs", {"pcs resource unmanage": 1}) == 1


BACKUP = "borg create"


def test_a_backup_says_which_disk_it_has_not(desk: Desk, call: Call) -> None:
    record = call("take", DOMAIN, "--name", "a", "--json").out
    assert desk.run(BACKUP, {}, says=record) == 0
    kept = [line for line in desk.told if "borg" in line]
    assert [line.rpartition(" ")[2] for line in kept] == [f"/dev/vg{i}/demo-d{i}.a" for i in (0, 1)]
    assert [line.split()[3] for line in kept] == ["repo::web-a-vda", "repo::web-a-vdb"]
    for failing in ("lvchange --activate y", "lvchange --activate n", "borg"):
        assert desk.run(BACKUP, {failing: 5}, says=record) == 5
    assert desk.run(BACKUP, {"snapvm take": 5}, says=record) == 5


def test_volumes_of_one_name_in_two_groups_are_two_archives(desk: Desk, call: Call) -> None:
    """The archive had the name of the volume alone: borg refused the second one, every night."""
    record = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    for disk in record["disks"]:
        disk["snapshot"]["lv"] = "root.a"
    assert desk.run(BACKUP, {}, says=json.dumps(record)) == 0
    kept = [line.split() for line in desk.told if "borg" in line]
    assert [words[4] for words in kept] == ["/dev/vg0/root.a", "/dev/vg1/root.a"]
    assert len({words[3] for words in kept}) == 2


def test_a_backup_of_nothing_is_none(desk: Desk, call: Call) -> None:
    """Its loop went round no time, and the status was 0."""
    record = call("take", DOMAIN, "--json").out
    assert desk.run(BACKUP, {"jq -r .disks": 5}, says=record) == 5


MONITOR = "snapvm check --json"


@pytest.mark.parametrize(
    ("says", "told", "status"),
    [
        ('{"findings": []}', "OK", 0),
        (
            '{"findings": [{"subject": "web@a"}, {"subject": "vg0"}], "error": {"kind": "Found"}}',
            "CRITICAL web@a vg0",
            2,
        ),
        ('{"error": {"kind": "HostLacks", "message": "no lvm"}}', "UNKNOWN no lvm", 3),
        ("", "UNKNOWN snapvm printed nothing", 3),
    ],
)
def test_a_monitor_is_told_by_the_exit_status(
    desk: Desk, says: str, told: str, status: int
) -> None:
    """It was 0 whatever was found, as jq ended, and nothing at all when snapvm was killed."""
    assert desk.run(MONITOR, {}, says=says) == status
    assert desk.said == f"{told}\n"


def test_a_monitor_reads_what_check_prints(desk: Desk, call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    assert desk.run(MONITOR, {}, says=call("check", "--json").out) == 0
    scene.lvm.named("vg1", "demo-d1.a").writable = True
    assert desk.run(MONITOR, {}, says=call("check", "--json").out) == 2
    assert desk.said == "CRITICAL demo@a\n"
