"""``snapvm rollback`` and ``snapvm undo`` say where the domain is, and what is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from snapvm.cli import app, rollback, wiring
from snapvm.errors import ExitStatus
from snapvm.failures import CommandFailed
from snapvm.model import DomainState, OmittedDisk, SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.cli.conftest import Call
from tests.unit.deeds import take, take_half


def test_rollback_keeps_what_was_current(call: Call, scene: Scene) -> None:
    scene.count(3)
    before = scene.disk_data()
    call("take", DOMAIN, "--name", "a")
    scene.count(2)
    done = call("rollback", "demo@a", "--yes")
    assert done.status == 0
    expected = r"demo is back at demo@a and running again, .* as demo@undo-\w+\n"
    assert re.fullmatch(expected, done.out)
    assert scene.disk_data() == before
    assert " undo " in call("list").out


@pytest.mark.parametrize("verb", [["rollback", "demo@a"], ["undo", DOMAIN, "--yes"]])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    call: Call, scene: Scene, verb: list[str]
) -> None:
    call("take", DOMAIN, "--name", "a")
    call("rollback", "demo@a", "--yes")
    scene.count(2)
    before = scene.lvm.names(), scene.ids(), scene.disk_data(), scene.machine.count
    told = call(*verb, "--dry-run")
    assert told.status == 0
    first, *_, last = told.out.splitlines()
    assert first.startswith("Roll back to demo@") and "memory will be lost" in told.out
    assert last == "Nothing stands in the way. Nothing was done (--dry-run)."
    values = json.loads(call(*verb, "-n", "--json").out)
    assert values["dry_run"] and values["would"] == [
        line.removeprefix("- ") for line in told.out.splitlines()[:-1]
    ]
    assert before == (scene.lvm.names(), scene.ids(), scene.disk_data(), scene.machine.count)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_dry_run_finds_what_stands_in_the_way_and_mends_nothing(call: Call, scene: Scene) -> None:
    record = take(scene, "a")
    take_half(scene, "half")
    names = scene.lvm.names()
    pending = call("rollback", "demo@a", "--dry-run")
    assert pending.status == ExitStatus.REFUSED and "snapvm repair demo" in pending.err
    assert scene.lvm.names() == names and any(scene.host.catalog.leftovers(UUID))
    assert call("repair", DOMAIN).status == 0
    assert call("rollback", "demo@a", "-n").status == 0
    assert record.memory is not None
    image = scene.host.catalog.path(record, record.memory.file)
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    damaged = call("rollback", "demo@a", "-n")
    assert damaged.status == ExitStatus.REFUSED and "has changed" in damaged.err
    assert not damaged.out
    assert call("rollback", "demo@a", "-n", "--no-verify").status == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rollback", "demo@a", "--yes"], "nothing was lost: the domain and its disks are as they"),
        (["take", DOMAIN], "nothing was kept, and the domain is as it was"),
    ],
)
def test_a_failure_says_what_became_of_the_domain(
    call: Call, scene: Scene, words: list[str], told: str
) -> None:
    """It was said which lvm had failed, and not whether the domain ran on."""
    call("take", DOMAIN, "--name", "a")

    def fail(argv: tuple[str, ...]) -> None:
        raise CommandFailed(argv=argv, status=5, stderr="a lock is held")

    scene.lvm.before = fail
    done = call(*words)
    assert done.status == ExitStatus.FAILED and "a lock is held\nhint: " + told in done.err
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


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


def test_an_image_that_is_gone_is_refused_before_anything(call: Call, scene: Scene) -> None:
    """It is damage that was found, not work that failed and was put back."""
    taken = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    record = scene.host.catalog.get(UUID, SnapshotId("a"))
    scene.host.catalog.path(record, taken["memory"]["file"]).unlink()
    before = scene.lvm.names()
    for verb in (["verify", "demo@a"], ["rollback", "demo@a", "--yes"]):
        done = call(*verb)
        assert done.status == ExitStatus.REFUSED and "the memory image is gone" in done.err
        assert "hint: other snapshots are not affected" in done.err
    assert call("check").out.startswith("demo@a: its memory: ")
    assert scene.lvm.names() == before and scene.ids() == ["a"]


def test_what_is_whole_and_cannot_be_looked_into_is_not_called_damaged(call: Call) -> None:
    call("take", DOMAIN, "--name", "disks", "--disk-only")
    call("take", DOMAIN, "--name", "full")
    of_disks = call("verify", "demo@disks", "--json")
    of_libvirt = call("inspect", "demo@full", "--va", "0", "--json")
    for done in (of_disks, of_libvirt):
        assert done.status == ExitStatus.REFUSED
        assert json.loads(done.out)["error"]["kind"] == "NothingToLookInto"
    assert "demo@disks cannot be examined: it has disks only, no memory" in of_disks.err
    assert "image is libvirt's" in of_libvirt.err and "the record" not in of_libvirt.err


def test_undo_goes_back_to_what_was_current(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    scene.count(2)
    call("rollback", "demo@a", "--yes")
    done = call("undo", DOMAIN, "--yes")
    assert done.status == 0 and done.out.startswith("demo is back at demo@undo-")
    assert scene.disk_data() == ["2", "2"]
    call("undo", DOMAIN, "--yes")
    assert scene.disk_data() == ["0", "0"], "undo is undone by undo"


def test_what_was_shut_off_is_not_left_paused(call: Call, scene: Scene) -> None:
    """It was left off, and nobody was told that this option meant nothing."""
    scene.hypervisor.stop(scene.machine.domain)
    call("take", DOMAIN, "--name", "a")
    before = scene.lvm.names()
    done = call("rollback", "demo@a", "--yes", "--paused")
    assert done.status == ExitStatus.USAGE and "--paused would have no effect" in done.err
    assert "hint: leave --paused out" in done.err
    assert scene.lvm.names() == before
    assert call("rollback", "demo@a", "--yes").status == 0
    assert call("undo", DOMAIN, "--yes", "--paused").status == ExitStatus.USAGE


def test_without_a_rollback_there_is_nothing_to_undo(call: Call) -> None:
    call("take", DOMAIN)
    done = call("undo", DOMAIN, "--yes")
    assert done.status == ExitStatus.NOT_FOUND
    assert "nothing to undo for demo" in done.err


def test_a_rollback_tells_programs_what_it_went_back_to(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    done = json.loads(call("rollback", "demo@latest", "--yes", "--paused", "--json").out)
    assert done["ref"] == "demo@a"
    assert done["state"] == "paused"
    assert done["undo"].startswith("demo@undo-")
    assert done["record"]["id"] == "a"


def test_what_did_not_come_back_is_told_to_who_was_not_asked(call: Call, scene: Scene) -> None:
    """It was told before the question alone, and so to no script."""
    scene.machine.omitted = (OmittedDisk(target="sda", why="a CD-ROM cannot change"),)
    call("take", DOMAIN, "--name", "a")
    left_out = [{"target": "sda", "why": "a CD-ROM cannot change"}]
    done = call("rollback", "demo@a", "--yes", "--json")
    assert json.loads(done.out)["left_out"] == left_out and json.loads(done.out)["notes"] == []
    assert "note: not in the snapshot: sda, a CD-ROM cannot change\n" in done.err


def test_a_drive_that_cannot_be_written_to_is_no_news_every_time(call: Call, scene: Scene) -> None:
    """A test machine that is reset every night mailed its CD-ROM every night."""
    scene.machine.omitted = (OmittedDisk(target="sda", why="a cdrom drive", read_only=True),)
    assert call("take", DOMAIN, "--name", "a").err == ""
    done = call("rollback", "demo@a", "--yes", "--json")
    left_out = [{"target": "sda", "why": "a cdrom drive", "read_only": True}]
    assert json.loads(done.out)["left_out"] == left_out and done.err == ""
    verbose = call("--verbose", "rollback", "demo@a", "--yes")
    assert "note: not in the snapshot: sda, a cdrom drive\n" in verbose.err


def test_what_the_next_start_of_the_domain_does_not_find_is_told(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    scene.machine.boot_disks = scene.machine.disks[:1]
    told = call("rollback", "demo@a", "--dry-run").out
    assert "- Disk vdb of the snapshot, vg1/demo-d1, is not in" in told, "it was Vg1/demo-d1"
    (note,) = json.loads(call("rollback", "demo@a", "--yes", "--json").out)["notes"]
    assert note.startswith(
        "disk vdb of the snapshot, vg1/demo-d1, is not in the domain's definition"
    )
    assert "virsh edit demo" in note
    scene.machine.boot_disks = None
    assert call("rollback", "demo@a", "--yes").err == ""
    scene.hypervisor.forget(DOMAIN)
    done = call("rollback", "demo@a", "--yes")
    assert done.status == 0 and "note: libvirt has no definition of the domain" in done.err
    assert "virsh dumpxml --security-info demo >FILE; virsh define FILE" in done.err


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
    monkeypatch.setattr(wiring, "open_host", lambda *_: scene.host)
    assert app.run(["take", DOMAIN, "--name", "a"]) == 0
    scene.lvm.named(vg, "demo-d0" if vg == "vg0" else "demo-d1").size_bytes = 96 << 20
    assert app.run(["rollback", "demo@a", "--yes"]) == 0
    assert f"note: disk {told}" in capsys.readouterr().err
    if vg == "vg0":
        assert scene.lvm.named(vg, "demo-d0").size_bytes == 64 << 20


@pytest.mark.parametrize("is_started", [False, True])
def test_a_yes_is_to_what_was_told(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch, is_started: bool
) -> None:
    """Who was told that the domain is off had not said that what it has in memory may go."""
    call("take", DOMAIN, "--name", "a")
    scene.hypervisor.stop(scene.machine.domain)

    def confirm(lines: list[str], _what: str) -> None:
        assert "- The domain is shut off now." in lines
        if is_started:
            scene.hypervisor.start(scene.machine.domain, paused=False)

    monkeypatch.setattr(rollback, "confirm", confirm)
    done = call("rollback", f"{DOMAIN}@a")
    assert done.status == (ExitStatus.REFUSED if is_started else ExitStatus.DONE)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert ("it was shut off when you were asked, and is running now" in done.err) is is_started
