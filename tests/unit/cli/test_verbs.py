"""Each verb does its work, says what it did, and tells failures in one form."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.cli import app, columns, listing, wiring
from snapvm.errors import ExitStatus
from snapvm.model import DomainState, DomainUuid, Record, SnapshotId
from tests.fakes.records import disks_only, make_record, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
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
    assert re.search(r" disks +vda vdb +unknown +- +", call("list").out)


def test_take_can_end_the_domain(call: Call, scene: Scene) -> None:
    assert "of one instant; demo is shut off, " in call("take", DOMAIN, "--stop").out
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.SHUTOFF
    refused = call("take", DOMAIN, "--stop", "--disk-only")
    assert refused.status == ExitStatus.USAGE and "memory would be lost" in refused.err


def test_json_of_take_is_the_record(call: Call) -> None:
    taken = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    assert taken["ref"] == "demo@a"
    assert taken["timing"]["pause_ms"] >= 0
    (listed,) = json.loads(call("list", "--json").out)
    shown = json.loads(call("show", "demo@a", "--json").out)
    assert listed == shown
    health = shown.pop("health")
    assert shown == taken
    assert [disk["target"] for disk in health] == ["vda", "vdb"]
    assert all(disk["state"] in ("gone", "unknown") for disk in health), "this host has no such LV"


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


def test_quiesced_disks_and_the_clock_are_told(call: Call, scene: Scene) -> None:
    done = call("take", DOMAIN, "--name", "a", "--quiesce")
    assert "and 2 disks of one instant, file systems frozen; paused" in done.out
    assert "file systems were frozen" in call("show", "demo@a").out
    assert json.loads(call("list", "--json").out)[0]["quiesced"] is True
    back = call("rollback", "demo@a", "--yes")
    assert "running again, its clock set on by 3600 s, " in back.out
    left = call("rollback", "demo@a", "--yes", "--no-set-time")
    assert "clock" not in left.out and scene.machine.clock_behind_seconds
    assert json.loads(call("rollback", "demo@a", "-y", "--json").out)["clock_set_by_seconds"]


def test_quiesce_without_an_agent_is_refused(call: Call, scene: Scene) -> None:
    assert "guest agent: answers" in call("doctor", DOMAIN).out
    scene.machine.agent = False
    assert call("take", DOMAIN, "--quiesce").status == ExitStatus.REFUSED
    assert scene.ids() == []
    told = call("doctor", DOMAIN)
    assert told.status == 0, "a plain take needs none"
    assert "guest agent: none that --quiesce could use: no guest agent answers" in told.out
    agent = json.loads(call("doctor", DOMAIN, "--json").out)["guest_agent"]
    assert agent == {"answers": False, "why_not": "no guest agent answers"}


def test_an_image_that_has_changed_is_not_restored(call: Call, scene: Scene) -> None:
    scene.count(3)
    taken = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    record = scene.host.catalog.get(UUID, SnapshotId("a"))
    image = scene.host.catalog.path(record, taken["memory"]["file"])
    assert "checksum" in call("verify", "demo@a").out
    held = bytearray(image.read_bytes())
    held[-1] ^= 1
    image.write_bytes(held)
    scene.count(1)
    for verb in (["verify", "demo@a"], ["rollback", "demo@a", "--yes"]):
        done = call(*verb)
        assert done.status == ExitStatus.REFUSED and "has changed since it was taken" in done.err
    assert scene.disk_data() == ["4", "4"] and scene.ids() == ["a"]
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert call("rollback", "demo@a", "--yes", "--no-verify").status == 0


def test_undo_goes_back_to_what_was_current(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    scene.count(2)
    call("rollback", "demo@a", "--yes")
    done = call("undo", DOMAIN, "--yes")
    assert done.status == 0 and done.out.startswith("demo is back at demo@undo-")
    assert scene.disk_data() == ["2", "2"]
    call("undo", DOMAIN, "--yes")
    assert scene.disk_data() == ["0", "0"], "undo is undone by undo"


def test_nothing_to_undo(call: Call) -> None:
    call("take", DOMAIN)
    done = call("undo", DOMAIN, "--yes")
    assert done.status == ExitStatus.NOT_FOUND
    assert "nothing to undo of demo" in done.err


def test_rollback_as_json(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    done = json.loads(call("rollback", "demo@latest", "--yes", "--paused", "--json").out)
    assert done["ref"] == "demo@a"
    assert done["state"] == "paused"
    assert done["undo"].startswith("demo@undo-")
    assert done["record"]["id"] == "a"


def test_snapshots_of_one_name_are_found_under_every_uuid(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "old")
    other = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")
    scene.machine.domain = replace(scene.machine.domain, uuid=other)
    call("take", DOMAIN, "--name", "new")
    for wanted, id_ in (("old", "old"), ("new", "new"), ("ol", "old"), ("latest", "new")):
        assert json.loads(call("show", f"demo@{wanted}", "--json").out)["id"] == id_
    pruned = call("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes", "--json")
    assert json.loads(pruned.out)["deleted"] == ["demo@old"]


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


def put_days(scene: Scene, days: int) -> None:
    state_dir = scene.host.settings.state_dir
    for day in range(1, days + 1):
        made = disks_only(
            f"d{day}", created=f"2026-03-{day:02}T12:00:00+00:00", domain_uuid=UUID, disks=()
        )
        put_record(state_dir, made)


def test_prune_keeps_what_the_rules_keep(call: Call, scene: Scene) -> None:
    put_days(scene, 5)
    tried = call("prune", DOMAIN, "--keep-last", "2", "--dry-run")
    assert "demo@d3 of" in tried.out and tried.out.endswith("would delete 3 snapshots, kept 2\n")
    assert len(scene.ids()) == 5
    assert call("prune", DOMAIN, "--keep-last", "2").status == ExitStatus.REFUSED
    done = json.loads(call("prune", "--all", "--keep-daily", "2", "--yes", "--json").out)
    assert done["kept"] == {"demo@d5": ["daily"], "demo@d4": ["daily"]}
    assert sorted(done["deleted"]) == ["demo@d1", "demo@d2", "demo@d3"]
    assert scene.ids() == ["d4", "d5"]
    again = call("prune", "--all", "--keep-daily", "2")
    assert again.status == 0 and again.out == "deleted no snapshots, kept 2\n"


def test_doctor_tells_how_it_would_be_captured(call: Call, scene: Scene) -> None:
    before = scene.lvm.names()
    told = call("doctor", DOMAIN)
    assert told.status == 0
    assert "demo: running, 1 vCPU, 1.0 MiB (fake 1)" in told.out
    assert "vda: vg0/demo-d0, thin, " in told.out and "pool vg0/pool: data 10 %" in told.out
    values = json.loads(call("doctor", DOMAIN, "--json").out)
    assert values["capture"] and values["in_the_way"] == []
    assert scene.lvm.names() == before and scene.ids() == []


def test_doctor_names_all_that_stands_in_the_way(call: Call, scene: Scene) -> None:
    fill_pool(scene, disks_only("x"))
    told = call("doctor", DOMAIN)
    assert told.status == ExitStatus.REFUSED
    assert told.out.count("in the way: ") == 2, "one for each pool"
    assert "2 things stand in the way of a take of demo" in told.err
    values = json.loads(call("doctor", DOMAIN, "--json").out)
    assert len(values["in_the_way"]) == 2 and values["error"]["exit_status"] == 4


def test_check_of_a_host_in_order(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    call("rollback", "demo@a", "--yes")
    assert call("check", "--deep").out == "all is in order\n"
    assert json.loads(call("check", "--json").out) == {"findings": []}


def lose_volume(scene: Scene, record: Record) -> str:
    scene.lvm.volumes.remove(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    return "its volume vg1/demo-d1.a is gone"


def open_volume_to_writes(scene: Scene, record: Record) -> str:
    scene.lvm.named("vg0", record.disks[0].snapshot.lv).writable = True
    return "can be written to"


def shorten_image(scene: Scene, record: Record) -> str:
    image = scene.host.catalog.path(record, "memory.save")
    image.write_bytes(image.read_bytes()[:-1])
    return "its memory"


def change_image(scene: Scene, record: Record) -> str:
    image = scene.host.catalog.path(record, "memory.save")
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    return "has changed since it was taken"


def spoil_record(scene: Scene, record: Record) -> str:
    scene.host.catalog.path(record, "snapshot.json").write_text("{")
    return "demo@a: its record cannot be read"


def leave_work(scene: Scene, record: Record) -> str:
    scene.host.catalog.begin(scene.host.catalog.draft(UUID, SnapshotId("b")), DOMAIN, {"set": "x"})
    return "work on it was not finished (.b.draft) (snapvm repair demo)"


def fill_pool(scene: Scene, record: Record) -> str:
    for volume in scene.lvm.volumes:
        if not volume.pool:
            volume.data_percent = 95.0
    return "its data is 95.0 % full"


@pytest.mark.parametrize(
    "harm",
    [
        lose_volume,
        open_volume_to_writes,
        shorten_image,
        change_image,
        spoil_record,
        leave_work,
        fill_pool,
    ],
)
def test_check_finds_what_is_not_in_order(
    call: Call, scene: Scene, harm: Callable[[Scene, Record], str]
) -> None:
    call("take", DOMAIN, "--name", "a")
    words = harm(scene, scene.host.catalog.get(UUID, SnapshotId("a")))
    done = call("check", "--deep")
    assert done.status == ExitStatus.REFUSED
    assert words in done.out and "not in order" in done.err
    told = json.loads(call("check", "--deep", "--json").out)
    assert told["findings"] and told["error"]["kind"] == "Found"


def test_check_removes_volumes_without_a_snapshot(call: Call, scene: Scene) -> None:
    before = scene.lvm.names()
    call("take", DOMAIN, "--name", "a")
    shutil.rmtree(scene.host.catalog.path(scene.host.catalog.get(UUID, SnapshotId("a")), ""))
    found = call("check")
    assert found.status == ExitStatus.REFUSED and "no snapshot has it" in found.out
    assert call("check", "--fix").status == ExitStatus.REFUSED, "nobody said yes"
    assert scene.lvm.names() != before
    assert call("check", "--fix", "--yes").out == "removed 2 volumes\nall is in order\n"
    assert scene.lvm.names() == before


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
        (["take", "demo", "--wait", "nan"], 2, "it must be a number from 0 on"),
        (["take", "demo", "--wait", "-1"], 2, "it must be a number from 0 on"),
        (["prune"], 2, "give a domain or --all"),
        (["prune", "demo", "--all", "--keep-last", "1"], 2, "give a domain or --all"),
        (["prune", "demo"], 2, "say what to keep"),
        (["prune", "demo", "--keep-last", "0"], 2, "say what to keep"),
        (["prune", "demo", "--keep-daily", "-1"], 2, "--keep-daily"),
        (["prune", "nope", "--keep-last", "1"], 3, "there is no snapshot of nope"),
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
    assert header.split() == list(columns.HEADERS)
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


def test_a_lost_record_is_made_anew(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a", "--disk-only")
    assert call("catalog", "rebuild").out == "every snapshot has its record\n"
    shutil.rmtree(scene.host.settings.state_dir)
    found = call("check")
    assert found.status == ExitStatus.REFUSED and "snapvm catalog rebuild brings a" in found.out
    told = call("catalog", "rebuild", "--dry-run")
    assert told.status == 0 and scene.ids() == []
    assert re.match(r"would make demo@a of .*: 2 disks, no memory; not known: its note", told.out)
    done = json.loads(call("catalog", "rebuild", "--json").out)
    assert list(done["rebuilt"]) == ["demo@a"] and scene.ids() == ["a"]
    assert call("check").status == 0
    scene.lvm.volumes.remove(scene.lvm.named("vg1", "demo-d1.a"))
    shutil.rmtree(scene.host.settings.state_dir)
    half = call("catalog", "rebuild")
    assert half.status == ExitStatus.REFUSED and "of 2 disks 1 are there" in half.out
    assert scene.ids() == []


def test_list_tells_how_the_worst_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    monkeypatch.setenv("SNAPVM_STATE_DIR", str(scene.host.settings.state_dir))
    monkeypatch.setattr(wiring, "open_host", lambda settings, session=None: scene.host)
    monkeypatch.setattr(listing, "_report", scene.host.lvm.report)
    for name in ("whole", "tight", "lost", "gone", "off"):
        assert app.run(["take", DOMAIN, "--name", name]) == 0
    tight = scene.lvm.named("vg1", "demo-d1.tight")
    tight.data_percent, tight.size_bytes = 85.0, 16 << 20
    scene.lvm.named("vg1", "demo-d1.lost").invalid = True
    scene.lvm.volumes.remove(scene.lvm.named("vg0", "demo-d0.gone"))
    scene.lvm.named("vg0", "demo-d0.off").active = False
    capsys.readouterr()
    assert app.run(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    told = {id_: re.split(r" {2,}", lines[f"demo@{id_}"])[4] for id_ in ("whole", "tight", "off")}
    assert told == {"whole": "ok 10%", "tight": "nearly full 85%", "off": "unknown"}
    assert " lost " in lines["demo@lost"] and " gone " in lines["demo@gone"]
    assert app.run(["list", "--json"]) == 0
    health = {each["id"]: each["health"][1] for each in json.loads(capsys.readouterr().out)}
    wanted = {"target": "vdb", "state": "nearly full", "fill_percent": 85.0}
    assert health["tight"] == wanted and health["lost"]["state"] == "lost"


@pytest.mark.parametrize(("vg", "told"), [("vg0", "vda, now 96"), ("vg1", "vdb stays 96")])
def test_a_disk_that_has_grown_is_told_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vg: str,
    told: str,
) -> None:
    """A thin one is as it was again, a thick one keeps its size; see the man page."""
    scene = make_scene(tmp_path, thick=("vg1",))
    monkeypatch.setenv("SNAPVM_STATE_DIR", str(scene.host.settings.state_dir))
    monkeypatch.setattr(wiring, "open_host", lambda settings, session=None: scene.host)
    assert app.run(["take", DOMAIN, "--name", "a"]) == 0
    scene.lvm.named(vg, "demo-d0" if vg == "vg0" else "demo-d1").size_bytes = 96 << 20
    assert app.run(["rollback", "demo@a", "--yes"]) == 0
    assert f"note: disk {told}" in capsys.readouterr().err
    if vg == "vg0":
        assert scene.lvm.named(vg, "demo-d0").size_bytes == 64 << 20
