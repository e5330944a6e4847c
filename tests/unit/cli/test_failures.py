"""Failures and wrong uses are told in one form, whatever the verb."""

from __future__ import annotations

import errno
import json
import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapvm import settings
from snapvm.cli import commands, failures, otherwords
from snapvm.errors import ExitStatus
from snapvm.model import SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.cli.harms import lose_volume


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["take", "nope"], 3, "there is no domain named nope"),
        (["show", "demo@nope"], 3, "there is no snapshot demo@nope"),
        (["show", "demo@latest"], 3, "there is no snapshot demo@latest"),
        (["take", "demo", "--name", "latest"], 2, "this word is reserved"),
        (["take", "demo", "--name=-x"], 2, "'-x' cannot be used"),
        (["take", "demo", "--name", "a/b"], 2, "'a/b' cannot be used"),
        (["take", "demo", "--disk-only", "--capture", "auto"], 2, "leave --capture out"),
        (["take", "demo", "--disk-only", "--compress", "zstd"], 2, "leave --compress out"),
        (["take", "demo", "--disk-only", "--image-format", "plain"], 2, "leave --image-format"),
        (["take", "demo", "--disk-only", "--foreign-ptes", "zero"], 2, "--foreign-ptes out"),
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
        (["take", "demo", "--wait", "nan"], 2, "it must be a number from 0"),
        (["take", "demo", "--wait", "-1"], 2, "it must be a number from 0"),
        (["prune"], 2, "give either a domain or --all"),
        (["prune", "demo", "--all", "--keep-last", "1"], 2, "give either a domain or --all"),
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
        (["--state-dir", "", "list"], 2, "invalid value for --state-dir: it is empty"),
        (["--state-dir", "/srv/gr\udcf6n", "list"], 2, "is not UTF-8, or cannot be printed"),
        (["take", "demo", "--capture", "x"], 2, "invalid value for --capture: 'x' is not one"),
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


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--json", "list"], "--json goes after the verb: snapvm list --json ..."),
        (["-y", "delete", "x@y"], "-y goes after the verb: snapvm delete -y ..."),
        (["-n", "catalog", "rebuild"], "-n goes after the verb: snapvm catalog rebuild -n ..."),
        (["--nope", "list"], "`snapvm --help` shows its options"),
    ],
)
def test_an_option_before_the_verb_is_explained(call: Call, words: list[str], hint: str) -> None:
    done = call(*words)
    assert done.status == ExitStatus.USAGE
    assert f"no such option: {words[0]}\nhint: {hint}\n" in done.err


@pytest.mark.parametrize("guess", ["Did you mean --version?", "(Possible options: --a, --b)"])
def test_no_guess_is_told_where_more_is_known(
    guess: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = SimpleNamespace(
        ctx=SimpleNamespace(command_path="snapvm"),
        option_name="--json",
        format_message=lambda: f"No such option: --json {guess}",
    )
    places = failures.Places(verb="list", before={}, behind=["--json"], instead="")
    failures.tell_usage(problem, [], places)
    assert capsys.readouterr().err.startswith("snapvm: no such option: --json\nhint: --json goes")


@pytest.fixture(params=["option", "variable", "file"])
def elsewhere(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[str]:
    """Have the scene's folder named in one of the ways that hold for one command or shell alone.

    Returns what is typed for it.
    """
    folder = str(scene.host.settings.state_dir)
    monkeypatch.setattr(settings, "DEFAULT_FILE", tmp_path / "none.toml")
    if request.param == "variable":
        monkeypatch.setenv("SNAPVM_STATE_DIR", folder)
    if request.param == "file":
        monkeypatch.setenv("SNAPVM_CONFIG", str(tmp_path / "snapvm.toml"))
    return ["--state-dir", folder] if request.param == "option" else []


def test_what_to_type_next_has_the_folder_of_this_command(
    call: Call, scene: Scene, elsewhere: list[str]
) -> None:
    """As it was told, it looked after the usual folder: nothing to repair, with status 0."""
    call(*elsewhere, "take", DOMAIN, "--name", "a")
    there = f"where it says `snapvm`, type `snapvm --state-dir {scene.host.settings.state_dir}`"
    shown = f"hint: `snapvm list` shows the existing snapshots; {there}\n"
    assert call(*elsewhere, "show", "demo@b").err.endswith(shown)
    lose_volume(scene, scene.host.catalog.get(UUID, SnapshotId("a")))
    found = call(*elsewhere, "check")
    assert "snapvm delete demo@a" in found.out
    assert found.err.endswith(f"hint: {there}\n"), found
    assert "where it says" not in call(*elsewhere, "take", "nobody").err
    assert "where it says" not in call(*elsewhere, "take", "demo", "--name", "a").err


def test_the_folder_is_quoted_and_left_out_where_it_is_the_usual_one(
    call: Call, scene: Scene, tmp_path: Path
) -> None:
    call("take", DOMAIN, "--name", "a")
    other = call("--state-dir", f"{tmp_path}/my disk", "show", "demo@a")
    assert f"type `snapvm --state-dir {shlex.quote(f'{tmp_path}/my disk')}`\n" in other.err
    lose_volume(scene, scene.host.catalog.get(UUID, SnapshotId("a")))
    usual = ("--state-dir", str(scene.host.settings.state_dir))
    for words in ((), usual):
        for done in (call(*words, "show", "demo@b"), call(*words, "check")):
            assert done.status != 0 and "where it says" not in done.err


def test_another_place_is_not_where_the_folder_of_this_command_is_to_be_typed(
    call: Call, scene: Scene, elsewhere: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said: choose another place; type `snapvm --state-dir` with the full one there."""
    nothing = os.statvfs_result((4096, 4096, 25600, 8192, 8192, 99, 99, 99, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: nothing)
    full = call(*elsewhere, "take", DOMAIN)
    folder = scene.host.settings.state_dir
    assert full.status == ExitStatus.REFUSED
    assert full.err.endswith(
        "hint: make room (`snapvm delete`, `lvextend`) or choose another place; "
        f"where it says `snapvm`, type `snapvm --state-dir {folder}`\n"
    )


def test_an_option_behind_the_verb_is_explained(call: Call) -> None:
    done = call("list", "--state-dir", "/x")
    assert "hint: --state-dir goes before the verb: snapvm --state-dir DIR list ..." in done.err
    assert "verb: snapvm -v list ..." in call("list", "-v").err


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["restore", "demo@a"], "snapvm rollback"),
        (["-v", "--state-dir", "save", "snapshot", "demo"], "snapvm take"),
        (["rm", "demo@a"], "snapvm delete"),
        (["snapshot-revert", "demo", "a"], "snapvm rollback"),
        (["listsnapshot", "100"], "snapvm list"),
        (["version"], "snapvm --version"),
        (["help"], "snapvm --help"),
        (["help", "catalog", "rebuild"], "snapvm catalog rebuild --help"),
    ],
)
def test_the_verb_of_another_program_leads_to_ours(
    call: Call, words: list[str], typed: str
) -> None:
    done = call(*words)
    assert (done.status, done.out) == (ExitStatus.USAGE, "")
    assert done.err.endswith(f"'\nhint: `{typed}` does that here\n")


def test_what_other_programs_call_our_verbs_is_none_of_ours() -> None:
    for verb, words in otherwords._VERBS.items():
        assert verb in commands.VERBS and not set(words) & set(commands.VERBS)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["take", "demo@a"], "name the domain alone, such as demo, without @a"),
        (["doctor", "a@b@c"], "name the domain alone, such as a@b, without @c"),
        (["prune", "demo@a", "--keep-last", "1"], "name the domain alone, such as demo"),
        (["prune", "nope", "--keep-last", "1"], "`snapvm list` shows"),
        (["take", "nope"], "`virsh list --all` or `xl list` shows"),
        (["undo", "demo@a"], "`snapvm rollback demo@a` goes back to that snapshot"),
        (["undo", "demo"], "`snapvm list` shows"),
        (["rollback", "demo"], "or DOM@latest for the newest"),
    ],
)
def test_a_domain_and_a_snapshot_that_were_mixed_up_are_told_apart(
    call: Call, words: list[str], hint: str
) -> None:
    assert hint in call(*words).err


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "demo", "--keep-last", "x"],
        ["prune", "demo", "--keep-last", "-1"],
        ["take", "demo", "--wait", "soon"],
    ],
)
def test_a_value_that_is_no_number_is_told_in_our_words(call: Call, words: list[str]) -> None:
    first = call(*words).err.splitlines()[0]
    assert first.startswith(f"snapvm: invalid value for {words[-2]}: ")
    assert "Input" not in first and "parse" not in first


@pytest.mark.parametrize("words", [["nope"], ["--nope", "restore"], ["catalog", "restore"]])
def test_any_other_mistake_is_told_as_it_is(call: Call, words: list[str]) -> None:
    assert "` shows its options\n" in call(*words).err


def test_who_is_not_root_is_told_to_be(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["list"], ["show", "demo@a"], ["prune", "--all", "--keep-last", "1"]):
        done = call(*words)
        assert done.status == ExitStatus.REFUSED, "it was said to be put back, and never begun"
        assert "Permission denied" in done.err and "hint: run snapvm as root\n" in done.err


def test_who_is_root_and_may_not_is_not_refused(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS that takes root for nobody: to be root is no help."""

    def denied(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = call("list")
    assert done.status == ExitStatus.FAILED and "as root" not in done.err
    assert "findmnt --target" in done.err


def test_who_may_not_lock_a_domain_is_refused(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("take", DOMAIN, "--name", "a")
    opened = os.open

    def denied(path: str, flags: int, *rest: int, **others: int) -> int:
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **others)

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = call("rollback", "demo@a", "--yes")
    assert done.status == ExitStatus.REFUSED and "hint: run snapvm as root\n" in done.err
    assert scene.ids() == ["a"]


@pytest.mark.parametrize("words", [["list"], ["verify", "/root.save"]])
def test_whoever_may_not_read_a_file_of_roots_is_not_told_to_correct_it(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def denied(path: object, *_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        patch.setattr(os, "stat", denied)
        patch.setattr(os, "geteuid", lambda: 1000)
        done = call(*words)
    assert done.err.endswith("Permission denied\nhint: run snapvm as root\n")


def test_a_variable_that_nobody_heeds_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was misspelt was silently none; that of a test, and of our own, are known."""
    known = call("list").err
    monkeypatch.setenv("SNAPVM_CRASH", "")
    assert call("list").err == known
    monkeypatch.setenv("SNAPVM_STATEDIR", "/srv/snapvm")
    monkeypatch.setenv("SNAPVM_ZZZ", "1")
    done = call("list")
    assert done.status == 0 and done.err == (
        "warning: SNAPVM_STATEDIR in the environment is not a setting; "
        "did you mean 'SNAPVM_STATE_DIR'?\n"
        f"warning: SNAPVM_ZZZ in the environment is not a setting\n{known}"
    )


def test_a_broken_setting_is_told(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAPVM_STATE_DIR", "not/absolute")
    done = call("list")
    assert done.status == 2
    assert "SNAPVM_STATE_DIR" in done.err


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (["show", "demo@a", "--json=1"], " show"),
        (["take", "demo", "--name"], " take"),
        (["catalog", "rebuild", "--json=1"], " catalog rebuild"),
        (["--state-dir", "list", "take", "demo", "--name"], " take"),
        (["--state-dir"], ""),
        (["--verbose=1", "list"], ""),
    ],
)
def test_a_wrong_option_leads_to_the_help_of_its_verb(
    call: Call, arguments: list[str], verb: str
) -> None:
    done = call(*arguments)
    assert done.status == ExitStatus.USAGE
    assert f"hint: `snapvm{verb} --help` shows its options" in done.err
