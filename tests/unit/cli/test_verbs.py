"""Each verb does its work, says what it did, and tells failures in one form."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from snapvm.errors import ExitStatus
from snapvm.model import DomainState
from tests.fakes.records import disks_only, make_record, put_record
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.cli.conftest import Call


def test_take_says_what_it_made(call: Call, scene: Scene) -> None:
    done = call("take", DOMAIN, "--name", "before", "--note", "a note")
    assert done.status == 0
    expected = r"demo@before: memory [\d.]+ \w+ and 2 disks of one instant; paused .+ in all\n"
    assert re.fullmatch(expected, done.out)
    assert done.err == ""
    assert scene.ids() == ["before"]


def test_take_of_disks_says_so(call: Call, scene: Scene) -> None:
    assert (
        "2 disks of one instant, no memory (--disk-only)" in call("take", DOMAIN, "--disk-only").out
    )
    scene.machine.domain = replace(scene.machine.domain, state=DomainState.SHUTOFF)
    assert "no memory (the domain is shut off)" in call("take", DOMAIN).out
    assert "the domain was shut off" in call("show", f"{DOMAIN}@latest").out
    assert re.search(r" disks +vda vdb +- +", call("list").out)


def test_json_of_take_is_the_record(call: Call) -> None:
    taken = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    assert taken["ref"] == "demo@a"
    assert taken["timing"]["pause_ms"] >= 0
    assert json.loads(call("list", "--json").out) == [taken]
    assert json.loads(call("show", "demo@a", "--json").out) == taken


def test_rollback_keeps_what_was_current(call: Call, scene: Scene) -> None:
    scene.count(3)
    before = scene.disk_data()
    call("take", DOMAIN, "--name", "a")
    scene.count(2)
    done = call("rollback", "demo@a", "--yes")
    assert done.status == 0
    expected = r"demo is back at demo@a and running again, .* is demo@undo-\w+\n"
    assert re.fullmatch(expected, done.out)
    assert scene.disk_data() == before
    assert " undo " in call("list").out


def test_rollback_as_json(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    done = json.loads(call("rollback", "demo@latest", "--yes", "--paused", "--json").out)
    assert done["ref"] == "demo@a"
    assert done["state"] == "paused"
    assert done["undo"].startswith("demo@undo-")
    assert done["record"]["id"] == "a"


def test_latest_is_what_was_taken_not_the_undo(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    for _ in range(2):
        assert "back at demo@a" in call("rollback", "demo@latest", "--yes").out


def test_delete_takes_several_and_each_once(call: Call, scene: Scene) -> None:
    for name in ("a", "b", "c"):
        call("take", DOMAIN, "--name", name)
    done = call("delete", "demo@a", "demo@b", "demo@a", "--yes")
    assert done.out == "deleted demo@a, demo@b\n"
    assert scene.ids() == ["c"]
    assert json.loads(call("delete", "demo@c", "-y", "--json").out) == {"deleted": ["demo@c"]}


def test_delete_of_one_that_is_missing_deletes_none(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    assert call("delete", "demo@a", "demo@z", "--yes").status == ExitStatus.NOT_FOUND
    assert scene.ids() == ["a"]


@pytest.mark.parametrize("verb", ["rollback", "delete"])
def test_without_a_terminal_nothing_is_lost(call: Call, scene: Scene, verb: str) -> None:
    call("take", DOMAIN, "--name", "a")
    done = call(verb, "demo@a")
    assert done.status == ExitStatus.REFUSED
    assert "not confirmed, nothing was done" in done.err
    assert "hint: answer yes, or give --yes in a script" in done.err
    assert done.out == ""
    assert scene.ids() == ["a"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["take", "nope"], 3, "there is no domain named nope"),
        (["show", "demo@nope"], 3, "there is no snapshot demo@nope"),
        (["show", "demo@latest"], 3, "there is no snapshot demo@latest"),
        (["take", "demo", "--name", "latest"], 2, "this word is reserved"),
        (["take", "demo", "--name=-x"], 2, "'-x' cannot be used"),
        (["take", "demo", "--name", "a/b"], 2, "'a/b' cannot be used"),
        (["take", "demo", "--note", "x" * 1001], 2, "it has 1001 characters"),
        (["take", "demo", "--note", "\udcff"], 2, "it is not valid UTF-8"),
        (["show", "demo"], 2, "does not say which snapshot of which domain"),
        (["show", "demo@../x"], 2, "is no snapshot id"),
        (["show", "a\x1b[31mb@x"], 3, r"there is no snapshot 'a\x1b[31mb'@x"),
        (["delete", "demo@a\nb", "--yes"], 2, r"is no snapshot id"),
        (["list", "--nope"], 2, "no such option: --nope"),
        (["nope"], 2, "no such command 'nope'"),
        (["take"], 2, "missing argument"),
        (["delete"], 2, "missing argument"),
        (["take", "a", "b"], 2, "unexpected extra argument"),
        (["take", "--name"], 2, "requires an argument"),
        (["take", "-%s"], 2, "no such option: -%"),
        (["take", "--", "-%s"], 3, "there is no domain named -%s"),
        (["take", "my vm"], 3, "there is no domain named 'my vm'"),
        (["take", ""], 3, "there is no domain named ''"),
    ],
)
def test_failures_have_one_form(call: Call, arguments: list[str], status: int, words: str) -> None:
    plain = call(*arguments)
    assert plain.status == status
    assert plain.out == ""
    first, *rest = plain.err.splitlines()
    assert first.startswith("snapvm: ")
    assert words in first
    assert [line[:6] for line in rest] == ["hint: "]
    assert all(line.isprintable() for line in plain.err.splitlines())
    at = arguments.index("--") if "--" in arguments else len(arguments)
    if arguments[-1:] == ["--name"]:
        return
    as_json = call(*arguments[:at], "--json", *arguments[at:])
    if status != 2 or arguments[0] != "nope":
        assert as_json.status == status
        told = json.loads(as_json.out)["error"]
        assert told["exit_status"] == status
        assert set(told) == {"kind", "message", "hint", "exit_status"}


def test_an_option_behind_the_verb_is_explained(call: Call) -> None:
    done = call("list", "--state-dir", "/x")
    assert "hint: --state-dir stands before the verb: snapvm --state-dir list ..." in done.err


def test_no_verb_shows_the_help_and_is_a_wrong_use(call: Call) -> None:
    done = call()
    assert done.status == 2
    assert done.out == ""
    assert "Commands:" in done.err


def test_help_and_version(call: Call) -> None:
    assert call("--version").out == "snapvm 0.1.0\n"
    for arguments in (["--help"], ["-h"], ["take", "--help"], ["delete", "-h"]):
        done = call(*arguments)
        assert done.status == 0
        assert done.out.startswith("Usage: snapvm")
    assert "Usage: snapvm delete [OPTIONS] DOM@ID...\n" in call("delete", "--help").out
    assert "Usage: snapvm list [OPTIONS] [DOM]\n" in call("list", "--help").out


def test_a_broken_setting_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPVM_STATE_DIR", "not/absolute")
    done = call("list")
    assert done.status == 2
    assert "SNAPVM_STATE_DIR" in done.err


def test_verbose_tells_the_steps(call: Call) -> None:
    assert call("-v", "take", DOMAIN).status == 0


def test_list_is_quiet_about_nothing(call: Call) -> None:
    done = call("list")
    assert (done.status, done.out) == (0, "")
    assert done.err == "no snapshots (`snapvm take DOM` makes one)\n"
    assert call("list", "other", "--json").out == "[]\n"


def test_list_shows_damage_and_everything_else(call: Call, scene: Scene) -> None:
    state_dir = scene.host.settings.state_dir
    put_record(state_dir, make_record("good", note="two\nlines \x1b[31m [red]x[/red] %s"))
    put_record(state_dir, disks_only("off"))
    put_record(state_dir, make_record("bad")).write_text('{"schema": 1}')
    done = call("list")
    assert done.status == 0
    header, *rows = done.out.splitlines()
    assert header.split() == ["SNAPSHOT", "CREATED", "KIND", "DISKS", "MEMORY", "PAUSE", "NOTE"]
    assert [row.split()[0] for row in rows] == ["demo@good", "demo@off", "demo@bad"]
    assert r"two\nlines \x1b[31m [red]x[/red] %s" in rows[0]
    assert " damaged " in rows[-1]
    assert done.err.startswith("warning: demo@bad is damaged: ")
    assert [row["ref"] for row in json.loads(call("list", "--json").out)] == [
        "demo@good",
        "demo@off",
    ]


def test_show_of_a_damaged_record_is_refused(call: Call, scene: Scene) -> None:
    put_record(scene.host.settings.state_dir, make_record("bad")).write_text("{")
    done = call("show", "demo@bad")
    assert done.status == ExitStatus.REFUSED
    assert "cannot be used" in done.err


def test_a_prefix_will_do_when_it_is_unique(call: Call, scene: Scene) -> None:
    for name in ("nightly-1", "nightly-2", "weekly"):
        put_record(scene.host.settings.state_dir, make_record(name))
    assert call("show", "demo@w").out.startswith("demo@weekly\n")
    assert call("show", "demo@LATEST").status == 0
    done = call("show", "demo@night")
    assert done.status == ExitStatus.NOT_FOUND
    assert "could be any of nightly-1, nightly-2" in done.err
