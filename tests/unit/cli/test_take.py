"""``snapvm take`` says what it made, of memory, disks and file systems."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from snapvm.cli import take
from snapvm.errors import ExitStatus
from snapvm.model import DomainState, HypervisorKind, OmittedDisk
from tests.fakes.capture import FakeCapture
from tests.fakes.scene import DOMAIN, Scene
from tests.unit.cli.conftest import Call


def test_take_says_what_it_made(call: Call, scene: Scene) -> None:
    done = call("take", DOMAIN, "--name", "before", "--note", "a note")
    assert done.status == 0
    expected = r"demo@before: memory \S+ \w+ and 2 disks captured at one instant; paused .+ all\n"
    assert re.fullmatch(expected, done.out)
    assert done.err == ""
    assert scene.ids() == ["before"]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_was_taken_is_told_though_its_result_has_no_room(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    """With a status other than 0 it looked as if nothing had been kept."""
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        done = call("take", DOMAIN, *form)
    (id_,) = scene.ids()
    assert done.status == ExitStatus.FAILED
    assert "No space left on device; the work itself is done: " in done.err
    assert f"{DOMAIN}@{id_}" in done.err


def test_take_of_disks_says_so(call: Call, scene: Scene) -> None:
    done = call("take", DOMAIN, "--disk-only")
    assert "2 disks captured at one instant, no memory (--disk-only)" in done.out
    scene.hypervisor.stop(scene.machine.domain)
    said = call("take", DOMAIN).out
    assert re.search(r"no memory \(the domain is shut off\); \S+ \w+ in all\n", said), said
    assert "the domain was shut off" in call("show", f"{DOMAIN}@latest").out
    assert re.search(r" disks +vda vdb +ok +- +", call("list").out)


def test_take_can_end_the_domain(call: Call, scene: Scene) -> None:
    assert "at one instant; demo is shut off, " in call("take", DOMAIN, "--stop").out
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
    assert all(disk["state"] == "ok" for disk in health)


def test_quiesced_disks_and_the_clock_are_told(call: Call, scene: Scene) -> None:
    done = call("take", DOMAIN, "--name", "a", "--quiesce")
    assert "and 2 disks captured at one instant, file systems frozen; paused" in done.out
    assert "file systems were frozen" in call("show", "demo@a").out
    assert json.loads(call("list", "--json").out)[0]["quiesced"] is True
    back = call("rollback", "demo@a", "--yes")
    assert "running again, its clock set forward by 3600 s, " in back.out
    left = call("rollback", "demo@a", "--yes", "--no-set-time")
    assert "clock" not in left.out and scene.machine.clock_behind_seconds
    assert json.loads(call("rollback", "demo@a", "-y", "--json").out)["clock_set_by_seconds"]


def test_only_what_a_guest_can_write_to_is_told_of_every_night(call: Call, scene: Scene) -> None:
    """cron mails what is on standard error: a CD-ROM in it every night had notes thrown away."""
    drive = OmittedDisk(target="sda", why="a cdrom drive, empty", read_only=True)
    scene.machine.omitted = (drive, OmittedDisk(target="nvram", why="it is elsewhere"))
    assert call("take", DOMAIN, "--name", "a").err == "note: nvram was left out: it is elsewhere\n"
    assert "note: sda was left out: a cdrom drive, empty\n" in call("-v", "take", DOMAIN).err
    assert "left out: a cdrom drive, empty" in call("show", "demo@a").out
    wanted = [
        {"target": "sda", "why": "a cdrom drive, empty", "read_only": True},
        {"target": "nvram", "why": "it is elsewhere"},
    ]
    assert json.loads(call("show", "demo@a", "--json").out)["omitted"] == wanted
    assert json.loads(call("doctor", DOMAIN, "--json").out)["omitted"] == wanted


@pytest.mark.parametrize(
    ("capture", "is_told"),
    [
        ("background: QEMU wrote it (as was asked for)", False),
        ("precopy: QEMU wrote it (background is not possible: it is too old)", True),
        ("precopy: QEMU wrote it; the guest was stopped meanwhile", True),
    ],
)
def test_a_longer_pause_than_need_be_is_told_of(
    call: Call, monkeypatch: pytest.MonkeyPatch, capture: str, is_told: bool
) -> None:
    monkeypatch.setattr(FakeCapture, "method", capture)
    assert call("take", DOMAIN).err == (f"note: {capture}\n" if is_told else "")


def test_a_note_is_no_document(call: Call, scene: Scene) -> None:
    assert call("take", DOMAIN, "--note", "x" * (take.NOTE_LIMIT + 1)).status == ExitStatus.USAGE
    assert scene.ids() == []
    assert call("take", DOMAIN, "--note", "x" * take.NOTE_LIMIT).status == 0


@pytest.mark.parametrize("how", ["zero", "refuse"])
def test_what_is_about_xens_guests_is_not_ignored(call: Call, scene: Scene, how: str) -> None:
    done = call("take", DOMAIN, "--foreign-ptes", how)
    assert done.status == ExitStatus.USAGE and "libvirt has no Xen guests" in done.err
    assert scene.ids() == []
    scene.hypervisor.kind = HypervisorKind.XEN
    assert "would have no effect" not in call("take", DOMAIN, "--foreign-ptes", how).err


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
