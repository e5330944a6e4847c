"""``snapvm list`` and ``snapvm show`` tell what there is, and how it is."""

from __future__ import annotations

import gc
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.cli import app, columns, listing, render, volumestates, wiring
from snapvm.errors import ExitStatus
from snapvm.failures import CommandFailed
from snapvm.model import SnapshotId
from snapvm.settings import Settings
from tests.fakes.lvm import UNSEEN
from tests.fakes.records import disks_only, make_record, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.cli.conftest import Call
from tests.unit.deeds import delete


def test_list_is_quiet_about_nothing(call: Call, scene: Scene) -> None:
    scene.host.settings.state_dir.mkdir()
    done = call("list")
    assert (done.status, done.out) == (0, "")
    assert done.err == "no snapshots (`snapvm take DOM` makes one)\n"


def test_the_collector_of_cycles_is_at_work_again_after_a_list(call: Call) -> None:
    """It was off from there on, in tests too, which rely on it to find what one has left open."""
    call("take", DOMAIN)
    for words in (("list",), ("list", "--json")):
        assert call(*words).status == 0 and gc.isenabled()


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ("other", "of other (`snapvm take other` makes one)"),
        ("it's", """of it's (`snapvm take 'it'"'"'s'` makes one)"""),
        ("", "of '' (`snapvm take DOM` makes one)"),
        ("-x", "of -x (`snapvm take -- -x` makes one)"),
    ],
)
def test_a_domain_without_any_is_told_of_to_programs_too(
    call: Call, scene: Scene, domain: str, told: str
) -> None:
    """A name that was mistyped in a script would look like a domain that lost all it had."""
    scene.host.settings.state_dir.mkdir()
    for form in ([], ["--json"]):
        done = call("list", *form, "--", domain)
        assert (done.status, done.out) == (0, "[]\n" if form else "")
        assert done.err == f"no snapshots {told}\n"


def test_a_state_folder_that_is_not_there_is_named(call: Call, tmp_path: Path) -> None:
    """Somebody may have mistyped it; the usual one is just not made yet."""
    for words in (["--state-dir", f"{tmp_path}/nope", "list"], ["--state-dir=/nope", "list", "x"]):
        done = call(*words)
        assert (done.status, done.out) == (0, "")
        assert "/nope, which does not exist" in done.err
    assert listing._no_snapshots(None, Settings()).startswith("no snapshots (")


@pytest.mark.parametrize(
    "verb",
    [["check"], ["repair"], ["prune", "--all", "--keep-last", "1"], ["catalog", "rebuild", "-n"]],
)
def test_nothing_to_do_there_is_not_all_that_is_said(
    call: Call, scene: Scene, verb: list[str]
) -> None:
    """``repair`` after status 7, with a letter too few, had nothing to repair and ended with 0."""
    done = call(*verb)
    assert done.status == 0
    folder = scene.host.settings.state_dir
    assert done.err == f"warning: the state folder {folder} does not exist\n"
    folder.mkdir()
    assert call(*verb).err == ""


@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize("verb", [["list"], ["show", "demo@a"], ["check"], ["take", "demo"]])
def test_a_state_folder_that_is_a_file_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str], below: str
) -> None:
    (tmp_path / "file").write_text("")
    wrong = f"{tmp_path}/file{below}"
    by_option = call("--state-dir", wrong, *verb)
    monkeypatch.setenv("SNAPVM_STATE_DIR", wrong)
    by_variable = call(*verb)
    for done, where in ((by_option, "--state-dir"), (by_variable, "SNAPVM_STATE_DIR")):
        assert done.status == ExitStatus.USAGE and done.out == ""
        assert f"the setting in {where} cannot be used: '{wrong}' is not a folder" in done.err


def test_a_file_in_the_place_of_the_domains_is_told(call: Call, scene: Scene) -> None:
    scene.host.settings.state_dir.mkdir()
    (scene.host.settings.state_dir / "domains").write_text("")
    for verb in (["list"], ["show", "demo@a"], ["check"]):
        done = call(*verb)
        assert done.status == ExitStatus.FAILED and "domains: it is not a folder" in done.err


def test_a_link_to_a_disk_that_is_not_mounted_is_not_called_empty(
    call: Call, scene: Scene, tmp_path: Path
) -> None:
    """`list` saw no snapshots and `check` nothing amiss; a `take` ended with: File exists."""
    scene.host.settings.state_dir.symlink_to(tmp_path / "mnt")
    told = f"{scene.host.settings.state_dir} is a link to {tmp_path}/mnt, which is not there"
    prune = ["prune", "--all", "--keep-last", "1"]
    take, doctor = ["take", DOMAIN], ["doctor", DOMAIN]
    for verb in (["list"], ["show", "demo@a"], ["check"], ["repair"], prune, take, doctor):
        done = call(*verb)
        said = done.out + done.err
        assert done.status == ExitStatus.REFUSED and told in said, done
        assert f"mkdir -p {tmp_path}/mnt" in said


def test_a_snapshot_is_no_domain(call: Call, scene: Scene) -> None:
    scene.host.settings.state_dir.mkdir()
    done = call("list", "demo@a")
    assert (done.status, done.out) == (0, "")
    assert done.err == "no snapshots of demo@a (`snapvm show demo@a` shows one)\n"


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
    first, second = done.err.splitlines()
    assert first.startswith("warning: demo@bad is damaged: ")
    assert second.startswith("hint: `snapvm catalog rebuild --dry-run` ")
    *good, bad = json.loads(call("list", "--json").out)
    assert [row["ref"] for row in good] == ["demo@good", "demo@off"]
    assert bad.pop("problem") and bad == {
        "ref": "demo@bad",
        "id": "bad",
        "kind": "damaged",
        "domain": {"name": DOMAIN, "uuid": good[0]["domain"]["uuid"]},
    }


def test_show_of_a_damaged_record_is_refused(call: Call, scene: Scene) -> None:
    put_record(scene.host.settings.state_dir, make_record("bad")).write_text("{")
    done = call("show", "demo@bad")
    assert done.status == ExitStatus.REFUSED
    assert "cannot be used" in done.err


def test_show_counts_the_features_of_a_processor(call: Call, scene: Scene) -> None:
    """They were the longest line, and whoever compares them reads JSON."""
    features = "AuthenticAMD " + " ".join(f"f{n}" for n in range(40))
    record = replace(make_record("a"), versions={"qemu": "10.0.2", "processor": features})
    put_record(scene.host.settings.state_dir, record)
    assert "versions   qemu 10.0.2, processor AuthenticAMD with 40 features\n" in (
        call("show", "demo@a").out
    )
    assert json.loads(call("show", "demo@a", "--json").out)["versions"]["processor"] == features


def test_list_tells_how_the_worst_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(tmp_path, thick=("vg0", "vg1"))
    monkeypatch.setenv("SNAPVM_STATE_DIR", str(scene.host.settings.state_dir))
    monkeypatch.setattr(wiring, "open_host", lambda *_: scene.host)
    monkeypatch.setattr(volumestates, "_lvm", lambda: scene.host.lvm)
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
    assert health["tight"] == {**wanted, "volume": "vg1/demo-d1.tight"}
    assert health["lost"]["state"] == "lost"


@pytest.mark.parametrize("verb", [["list"], ["list", "--json"], ["show", "demo@a"]])
def test_why_nothing_is_known_of_the_volumes_is_told(
    call: Call, scene: Scene, verb: list[str]
) -> None:
    """They were `unknown`, without a word why; once, however many snapshots there are."""
    for name in ("a", "b"):
        call("take", DOMAIN, "--name", name)

    def fail(argv: tuple[str, ...]) -> None:
        raise CommandFailed(argv=argv, status=5, stderr="cannot open /etc/lvm/lvm.conf")

    assert call(*verb).err == ""
    scene.lvm.before = fail
    done = call(*verb)
    assert done.status == 0 and ("unknown" in done.out) is ("list" in verb)
    assert done.err.startswith("note: the state of the volumes is not known: ")
    assert "cannot open /etc/lvm/lvm.conf" in done.err and done.err.count("\n") == 1
    assert "`lvm lvs --config" in done.err and len(done.err) < 300, "it was behind all its fields"


@pytest.mark.parametrize("term", ["xterm", "dumb", "unknown"])
def test_no_terminal_gets_an_id_cut_short(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    """What cannot be copied from the list cannot be typed; TERM=dumb is the shell in Emacs."""
    monkeypatch.setenv("TERM", term)
    row = ("web-server-of-the-shop@20261122T201755Z", "2026-11-22 20:17", "full", "vda vdb vdc")
    drawn = render.table([(*row, "nearly full 85%", "131 MiB", "84 ms", "")])
    assert all(cell in drawn for cell in (*row, "nearly full 85%"))


@pytest.mark.parametrize(
    ("terminal", "note", "shown"),
    [
        (80, "", ""),
        (86, "short", "short"),
        (92, "before the upgrade", "before th..."),
        (200, "before the upgrade", "before the upgrade"),
    ],
)
def test_no_line_is_folded_for_a_note_that_has_no_room(
    monkeypatch: pytest.MonkeyPatch, terminal: int, note: str, shown: str
) -> None:
    """The usual terminal has 80 columns, and the row of a snapshot without a name 78."""
    monkeypatch.setenv("COLUMNS", str(terminal))
    monkeypatch.setenv("NO_COLOR", "1")
    row = ("demo@20261122T201755Z", "2026-11-22 20:17", "full", "vda vdb", "ok 10%", "131 MiB")
    _, rule, drawn = render.table([(*row, "84 ms", note)]).splitlines()
    assert drawn == "  ".join((*row, "84 ms", shown)).rstrip()
    assert len(rule) <= terminal


def test_a_note_that_has_no_room_in_its_row_stands_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the usual 80 columns nobody ever saw one."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    row = ("demo@20261122T201755Z", "2026-11-22 20:17", "full", "vda vdb", "ok 10%", "131 MiB")
    notes = ("before the upgrade", "", "x" * 99)
    headers, _, *drawn = render.table([(*row, "84 ms", note) for note in notes]).splitlines()
    its = "  ".join((*row, "84 ms"))
    assert drawn == [its, "  before the upgrade", its, its, f"  {'x' * 75}..."]
    assert "NOTE" not in headers


def test_what_a_group_has_that_is_away_is_not_called_gone(call: Call, scene: Scene) -> None:
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    scene.lvm.away["vg1"] = UNSEEN
    asked: list[str] = []
    scene.lvm.before = lambda argv: asked.append(argv[1])
    lines = call("list").out.splitlines()[1:]
    assert [re.split(r" {2,}", line)[4] for line in lines] == ["no group"] * 3
    assert asked == ["lvs", "vgs"], "once for all"
    shown = call("show", "demo@a").out
    assert "whose volume group LVM does not show: `snapvm check` says why" in shown
    scene.lvm.away.clear()
    scene.lvm.volumes = [volume for volume in scene.lvm.volumes if volume.vg != "vg1"]
    assert call("list").out.count(" gone ") == 3, "the group is there, and empty"


def test_a_volume_is_told_by_the_name_that_it_has(call: Call, scene: Scene) -> None:
    """After vgrename or lvrename; another may have the one that was recorded, to be mounted."""
    call("take", DOMAIN, "--name", "a")
    scene.lvm.rename_group("vg0", "renamed")
    scene.lvm.named("vg1", "demo-d1.a").name = "kept"
    scene.lvm.add_disk("vg1", "demo-d1.a", data="another's")
    told = json.loads(call("show", "demo@a", "--json").out)
    assert [each["volume"] for each in told["health"]] == ["renamed/demo-d0.a", "vg1/kept"]
    assert told["disks"][0]["snapshot"]["vg"] == "vg0", "the record is as it was written"
    text = call("show", "demo@a").out
    assert "snapshot vg0/demo-d0.a, which is renamed/demo-d0.a now" in text
    assert "snapshot vg1/demo-d1.a, which is vg1/kept now" in text
    scene.lvm.volumes.remove(scene.lvm.named("vg1", "kept"))
    told = json.loads(call("list", "--json").out)[0]
    assert [each["volume"] for each in told["health"]] == ["renamed/demo-d0.a", None]
    assert "now" not in call("show", "demo@a").out.partition("vdb")[2]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_is_deleted_meanwhile_is_not_called_gone(
    call: Call, scene: Scene, options: tuple[str, ...]
) -> None:
    """A monitor that met a `prune` was told of snapshots whose volumes are gone."""
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    delete_when_lvm_is_asked(scene, "a")
    done = call("list", *options)
    assert (done.status, done.err) == (0, "")
    assert "demo@b" in done.out and "demo@c" in done.out
    assert "gone" not in done.out and "demo@a" not in done.out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_is_deleted_meanwhile_is_not_shown(
    call: Call, scene: Scene, options: tuple[str, ...]
) -> None:
    call("take", DOMAIN, "--name", "a")
    delete_when_lvm_is_asked(scene, "a")
    done = call("show", "demo@a", *options)
    assert done.status == ExitStatus.NOT_FOUND and "there is no snapshot demo@a\n" in done.err


def delete_when_lvm_is_asked(scene: Scene, id_: str) -> None:
    """Have another snapvm delete a snapshot before LVM is first asked, and after it was read."""

    def before(_argv: tuple[str, ...]) -> None:
        scene.lvm.before = lambda _argv: None
        delete(scene, scene.host.catalog.get(UUID, SnapshotId(id_)))

    scene.lvm.before = before
