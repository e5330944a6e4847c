"""Names, notes and paths that a shell, an option parser, a format or a terminal could misread."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.errors import ExitStatus
from snapvm.model import DomainUuid
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call

STRANGE = (
    "-rf",
    "--yes",
    "100%s%n",
    "two words",
    'it\'s "quoted"',
    "a\nb",
    "..",
    "../../etc",
    "$(reboot)",
    "`reboot`",
    "a;reboot",
    "\x1b[2Jred\x07",
    "[bold]markup[/bold]",
    "übung",
    "*",
)


def rename(scene: Scene, name: str) -> None:
    """Let the domain have another name, as a hypervisor may allow."""
    machine = scene.hypervisor.machines.pop(DOMAIN)
    machine.domain = replace(machine.domain, name=name)
    scene.hypervisor.machines[name] = machine


def is_plain(text: str) -> bool:
    """Whether a terminal would only write this."""
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.parametrize("name", STRANGE)
def test_a_domain_of_any_name(call: Call, scene: Scene, name: str) -> None:
    """Taken, listed, shown, gone back to and deleted like any other."""
    rename(scene, name)
    taken = call("take", "--name", "a", "--", name)
    assert taken.status == 0, taken.err
    listed = json.loads(call("list", "--json").out)
    assert [(r["domain"]["name"], r["id"]) for r in listed] == [(name, "a")]
    shown = [call("list"), call("show", "--", f"{name}@a"), call("check"), taken]
    shown += [call("rollback", "--yes", "--", f"{name}@a")]
    shown += [call("undo", "--yes", "--", name)]
    shown += [call("delete", "--yes", "--", f"{name}@a"), call("repair", "--", name)]
    assert [done.status for done in shown] == [0] * len(shown), shown
    assert all(is_plain(done.out + done.err) for done in shown), shown


@pytest.mark.parametrize("verb", ["take", "undo"])
@pytest.mark.parametrize("name", STRANGE)
def test_a_domain_that_is_not_there(call: Call, verb: str, name: str) -> None:
    options = ["--yes"] if verb == "undo" else []
    done = call(verb, *options, "--", name)
    assert done.status == ExitStatus.NOT_FOUND, done
    assert is_plain(done.out + done.err) and "Traceback" not in done.err


@pytest.mark.parametrize("name", [name for name in STRANGE if name != "übung"])
def test_a_snapshot_cannot_have_such_a_name(call: Call, scene: Scene, name: str) -> None:
    done = call("take", DOMAIN, f"--name={name}")
    assert done.status == ExitStatus.USAGE and "hint:" in done.err, done
    assert is_plain(done.err) and scene.ids() == []


@pytest.mark.parametrize("note", STRANGE)
def test_a_note_is_kept_and_shown_harmlessly(call: Call, note: str) -> None:
    assert call("take", DOMAIN, "--name", "a", f"--note={note}").status == 0
    assert json.loads(call("show", f"{DOMAIN}@a", "--json").out)["note"] == note
    for shown in (call("show", f"{DOMAIN}@a"), call("list"), call("list", "--json")):
        assert shown.status == 0 and is_plain(shown.out + shown.err), shown


@pytest.mark.parametrize("name", [name for name in STRANGE if "/" not in name])
def test_a_state_folder_of_any_name(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A record in it that cannot be read is told harmlessly, with its path."""
    folder = tmp_path / name
    monkeypatch.setenv("SNAPVM_STATE_DIR", str(folder))
    listed = call("list")
    if not name.isprintable():
        assert listed.status == ExitStatus.USAGE and is_plain(listed.err), listed
        return
    assert listed.status == 0
    record = folder / "domains" / UUID / "kept" / "snapshot.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    refused = call("show", f"{UUID}@kept")
    assert refused.status == ExitStatus.REFUSED and is_plain(refused.err), refused
    assert "snapshot.json" in refused.err


def test_a_domain_uuid_cannot_lead_out_of_the_folder(call: Call, scene: Scene) -> None:
    machine = scene.machine
    machine.domain = replace(machine.domain, uuid=DomainUuid("../../../../tmp/x"))
    done = call("take", DOMAIN)
    assert done.status not in (0, ExitStatus.BUG) and "Traceback" not in done.err, done
