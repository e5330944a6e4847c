"""What the papers have a reader type, typed on a host of fakes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import time
from itertools import chain

import pytest

from snapvm import guard
from snapvm.errors import ExitStatus
from snapvm.model import OmittedDisk
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.house.source import ROOT
from tests.unit.cli.conftest import Call

PAPERS = (ROOT / "README.md", ROOT / "docs" / "automation.md")
JQ = re.compile(
    r"(?:snapvm (?P<verb>[a-z]+)[^|\n`]*\| )?jq (?P<options>-e?r?) (?P<program>'[^']+'|\.\w+)"
)
PROGRAMS = [
    (found["verb"] or "take", found["options"], found["program"].strip("'"))
    for found in chain.from_iterable(JQ.finditer(paper.read_text()) for paper in PAPERS)
]

pytestmark = pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")


def jq(options: str, program: str, text: str) -> tuple[int, str]:
    """Return jq's exit status and what it printed."""
    argv = ["jq", options, program]
    done = subprocess.run(argv, input=text, check=False, capture_output=True, text=True)
    assert done.stderr == "", (program, done.stderr)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("verb", "options", "program"), PROGRAMS)
def test_a_program_for_jq_finds_what_it_looks_for(
    call: Call, scene: Scene, verb: str, options: str, program: str
) -> None:
    scene.machine.omitted = (OmittedDisk(target="nvram", why="it is elsewhere"),)
    taken = call("take", DOMAIN, "--json").out
    arguments = {"show": [f"{DOMAIN}@latest"]}.get(verb, [])
    text = taken if verb == "take" else call(verb, *arguments, "--json").out
    status, said = jq(options, program, text)
    assert status == 0 and said.strip() and "null" not in said


def test_there_are_programs_for_jq() -> None:
    assert {verb for verb, _, _ in PROGRAMS} == {"take", "list", "show", "check"}
    assert len(PROGRAMS) >= 7


def program_of(verb: str, part: str) -> tuple[str, str]:
    """Return the options and the text of a program that has this in it."""
    ((options, text),) = {(o, p) for v, o, p in PROGRAMS if v == verb and part in p}
    return options, text


def test_a_monitor_tells_what_was_found_from_what_could_not_be_looked_at(
    call: Call, scene: Scene
) -> None:
    program = program_of("check", "CRITICAL")
    call("take", DOMAIN, "--name", "a")
    assert jq(*program, call("check", "--json").out)[1] == "OK\n"
    assert jq(*program, call("check", "nope", "--json").out)[1].startswith("UNKNOWN there is no")
    (scene.host.settings.state_dir / "domains" / UUID / "a" / "snapshot.json").write_text("{")
    found = call("check", "--json")
    assert found.status == ExitStatus.REFUSED
    assert jq(*program, found.out)[1].startswith("CRITICAL demo@a")


def test_a_monitor_sees_that_the_newest_snapshot_is_old(call: Call) -> None:
    program = program_of("show", "now")
    call("take", DOMAIN)
    record = json.loads(call("show", f"{DOMAIN}@latest", "--json").out)
    assert jq(*program, json.dumps(record)) == (0, "true\n")
    day_before = time.gmtime(time.time() - 26 * 3600)
    record["created"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", day_before)
    assert jq(*program, json.dumps(record)) == (1, "false\n")
    assert jq(*program, call("show", f"{DOMAIN}@nope", "--json").out)[0] == 1


def test_a_machine_that_is_reset_every_night_keeps_one_way_back(call: Call, scene: Scene) -> None:
    """Each rollback leaves what was current, which `prune` leaves alone unless it is told."""
    commands = re.findall(
        r"^snapvm ((?:rollback|prune) lab.*)$", PAPERS[1].read_text(), re.MULTILINE
    )
    assert len(commands) == 2
    call("take", DOMAIN, "--name", "clean")
    for _night in range(3):
        for command in commands:
            assert call(*command.replace("lab", DOMAIN).split()).status == 0
    assert len(scene.ids()) == 2 and "clean" in scene.ids()


ASKS = {"rollback", "undo", "delete"}
NOT_HERE = {"inspect", "--install-completion"}
"""The one is for images of Xen's; the other writes into a home."""


def typed(heading: str) -> list[list[str]]:
    """Return the commands in the scripts below a heading of the README, each as its words."""
    section = PAPERS[0].read_text().partition(f"\n## {heading}")[2].partition("\n## ")[0]
    lines = re.findall(r"^snapvm (.*)$", section, re.MULTILINE)
    return [shlex.split(line.partition("|")[0], comments=True) for line in lines]


def test_what_the_readme_has_a_reader_type_is_done(call: Call, scene: Scene) -> None:
    first, more = typed("The first snapshot"), typed("More commands")
    assert len(first) > 6 and len(more) > 11
    for words in first:
        sure = ["--yes"] if words[0] in ASKS else []
        assert call(*words, *sure).status == 0, words
    assert len(scene.ids()) == 2, "what its rollback and its undo left"
    for words in more:
        if words[0] in NOT_HERE:
            continue
        done = call(*words)
        assert done.status == 0, (words, done.err)


def test_the_log_of_a_guard_is_where_the_guide_says() -> None:
    """It named another identifier, for which journalctl shows nothing of a guard."""
    guide = (ROOT / "docs" / "automation.md").read_text()
    assert re.findall(r"journalctl -t ([\w-]+)", guide) == [guard.NAME]
