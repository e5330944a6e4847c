"""What a program reads is what the man page says."""

from __future__ import annotations

import json
import re

import pytest

from snapvm.errors import ExitStatus
from snapvm.failures import CommandFailed
from snapvm.model import DomainUuid
from tests import schema
from tests.fakes.records import disks_only, put_record
from tests.fakes.scene import DOMAIN, GROUPS, Scene
from tests.house.source import ROOT
from tests.unit.cli.conftest import Call
from tests.unit.deeds import take_half

PAGE = (ROOT / "man" / "snapvm.1").read_text()


def keys_of(verb: str) -> set[str]:
    """Return the keys that the page has for a verb; a record's own are in its schema."""
    section = PAGE[PAGE.index(".SH JSON") : PAGE.index(".SH ENVIRONMENT")]
    _, _, text = section.partition(f"\\fB{verb}\\fR\n")
    return set(re.findall(r"\\fB([a-z_]+)\\fR", text.partition(".TP")[0]))


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("rollback, undo", ["rollback", "demo@a", "--yes"]),
        ("delete", ["delete", "demo@a", "--yes"]),
        ("prune", ["prune", DOMAIN, "--keep-last", "1"]),
        ("check", ["check"]),
        ("check", ["check", "--fix"]),
        ("doctor", ["doctor", DOMAIN]),
        ("repair", ["repair"]),
        ("catalog rebuild", ["catalog", "rebuild"]),
    ],
)
def test_the_page_has_every_key(call: Call, heading: str, words: list[str]) -> None:
    assert call("take", DOMAIN, "--name", "a").status == 0
    told = json.loads(call(*words, "--json").out)
    assert set(told) <= keys_of(heading)


def test_a_record_has_what_its_schema_has_and_what_the_page_adds(call: Call) -> None:
    known = set(schema.SCHEMA["properties"])
    taken = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    shown = json.loads(call("show", "demo@a", "--json").out)
    (row,) = json.loads(call("list", "--json").out)
    assert shown == row
    schema.require_fit(taken)
    schema.require_fit(shown)
    assert set(taken) - known == {"ref"} <= keys_of("take")
    assert set(shown) - known == {"ref", "health"}
    assert "health" in keys_of("show") & keys_of("list")


OTHER = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")
BACK = "took back the unfinished snapshot demo@half"
GONE = "removed the orphan vg0/demo-d0.late"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_a_repair_has_done_is_told_though_one_domain_is_busy(
    call: Call, scene: Scene, options: tuple[str, ...]
) -> None:
    """Of volumes that it had removed there was no word anywhere."""
    put_record(scene.host.settings.state_dir, disks_only("a", domain="busy", domain_uuid=OTHER))
    take_half(scene, "half")
    for number, vg in enumerate(GROUPS):
        tags = {"snapvm=1", "snapvm.set=abababababab", "snapvm.st=new"}
        late = scene.lvm.add_disk(vg, f"demo-d{number}.late")
        late.tags = tags

    def refuse(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove" and any(late.uuid in word for word in argv):
            raise CommandFailed(argv=argv, status=5, stderr="it says no")

    scene.lvm.before = refuse
    with scene.host.catalog.locked(OTHER, "busy"):
        done = call("repair", *options)
    assert done.status == ExitStatus.FAILED
    if options:
        assert json.loads(done.out)["repaired"] == [BACK, GONE]
    else:
        assert done.out.splitlines() == [BACK, GONE]
