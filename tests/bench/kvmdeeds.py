"""What is measured of a KVM domain: what snapvm does with it, and what a person would type."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from tests.lab.guests import FORGET_SNAPSHOTS, Guest
from tests.lab.vm import Lab

SMALL_MIB, LARGE_MIB = 512, 2048
FILLED_MIB = {SMALL_MIB: 64, LARGE_MIB: 512}
"""How much of its memory a guest has written once before anything is measured: no empty pages."""
DIRTY_MIB = 24
"""Written over and over while a guest is captured; with much more than that libvirt's own
snapshot never ends under emulation."""
CAPTURED_BEFORE = 2
"""How often a guest is captured before anything is measured; see `FilledGuest`."""
WATCH = "cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.host.qemustanding"
IMPORTS = (
    'python3 -P -c \'import sys; sys.modules["rich"] = None;'
    " import typer, sh, tenacity, libvirt, xxhash'"
)
"""What any Python with the libraries that snapvm is built upon does first."""
CHANNELS = "--parallel-channels 2"
STOCK_IMAGE = "/var/lib/libvirt/qemu/save/stock.save"
SECONDS = 400
INSTALLED = "/usr/local/bin/snapvm"
INSTALL = f"""
cp -r /snapvm/snapvm /usr/local/lib/snapvm && python3 -m compileall -q /usr/local/lib/snapvm
printf '#!/bin/sh\\nPYTHONPATH=/usr/local/lib exec python3 -P -m snapvm "$@"\\n' >{INSTALLED}
chmod +x {INSTALLED}
"""
"""Snapvm as its users have it: on the host's disk, compiled.  The checkout is a network folder."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run of a command while its domain was watched."""

    pause_ms: float
    seconds: float
    peak_mb: float
    said: str = ""

    @property
    def parts(self) -> list[dict[str, Any]]:
        """What a take says its pause consisted of."""
        return list(json.loads(self.said)["timing"]["parts"])


class FilledGuest(Guest):
    """A guest whose memory holds something, and that was captured before: all is warm.

    Twice, as any guest has been that is captured every night: snapvm knows by then how far ahead of
    the pause QEMU can begin.
    """

    def __init__(self, lab: Lab, name: str, disks: int, memory_mib: int) -> None:
        super().__init__(lab, name, "--disks", str(disks), "--memory", str(memory_mib))
        self.disks = disks
        self.memory_mib = memory_mib

    def __enter__(self) -> Self:
        super().__enter__()
        self.say(f"dirty {FILLED_MIB[self.memory_mib]}")
        self.lab.run(["sleep", "8"], timeout_seconds=30)
        self.say("dirty 0")
        for _ in range(CAPTURED_BEFORE):
            take(self)
        return self

    @contextmanager
    def dirtying(self) -> Iterator[None]:
        """Have it write its memory over and over in the block."""
        self.say(f"dirty {DIRTY_MIB}")
        try:
            yield
        finally:
            self.say("dirty 0")

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Have it stand still in the block: even an idle guest takes time from one beside it."""
        self.lab.run(f"virsh -q suspend {self.name}", timeout_seconds=60, check=True)
        try:
            yield
        finally:
            self.lab.run(f"virsh -q resume {self.name}", timeout_seconds=60, check=True)


def take(guest: FilledGuest) -> Sample:
    """Take a snapshot and forget it."""
    sample = watched(guest, f"snapvm take {guest.name} --json")
    guest.lab.run(FORGET_SNAPSHOTS, timeout_seconds=120, check=True)
    return sample


def script(guest: FilledGuest) -> Sample:
    """Do it by hand, the memory left out."""
    lines = [f"virsh -q suspend {guest.name}", *snapshots(guest), f"virsh -q resume {guest.name}"]
    return by_hand(guest, lines)


def stock(guest: FilledGuest) -> Sample:
    """Do it by hand with libvirt's memory snapshot."""
    disks = " ".join(f"--diskspec vd{chr(97 + n)},snapshot=manual" for n in range(guest.disks))
    memory = f"--memspec {STOCK_IMAGE},snapshot=external"
    create = f"virsh -q snapshot-create-as {guest.name} --no-metadata --live {memory} {disks}"
    sample = by_hand(guest, [create, *snapshots(guest), f"virsh -q resume {guest.name}"])
    guest.lab.run(f"rm {STOCK_IMAGE}", timeout_seconds=60, check=True)
    return sample


def snapshots(guest: FilledGuest) -> list[str]:
    return [
        f"lvcreate -qq -s -n {guest.name}-s{n} vg0/{guest.name}-d{n}" for n in range(guest.disks)
    ]


def by_hand(guest: FilledGuest, lines: Sequence[str]) -> Sample:
    sample = watched(guest, f"sh -ec {shlex.quote('; '.join(lines))}")
    gone = " ".join(f"vg0/{guest.name}-s{n}" for n in range(guest.disks))
    guest.lab.run(f"lvremove -qq -y {gone}", timeout_seconds=120, check=True)
    return sample


def roll_back(guest: FilledGuest, id_: str) -> Sample:
    """Roll back; what was current is forgotten afterwards."""
    sample = watched(guest, f"{INSTALLED} rollback --yes {guest.name}@{id_}")
    undo = f"$(snapvm list {guest.name} | grep -o '^{guest.name}@undo[^ ]*')"
    guest.lab.run(f"snapvm delete --yes {undo}", timeout_seconds=120, check=True)
    return sample


def restore_by_script(
    guest: FilledGuest, image: PurePosixPath, *, ahead: str = "true", options: str = ""
) -> Sample:
    """Do what a rollback does, by hand; ``ahead`` is typed before."""
    name = f"{guest.name}-d0"
    lines = (
        f"{ahead}; virsh -q destroy {guest.name}; lvrename -qq vg0/{name} vg0/old-{name};"
        f" lvcreate -qq -s -kn -prw -n {name} vg0/{name}.{image.parent.name};"
        f" lvchange -qq -ay -K vg0/{name}; virsh -q restore {image} {options}"
    )
    sample = watched(guest, f"sh -ec {shlex.quote(lines)}")
    guest.lab.run(f"lvremove -qq -y vg0/old-{name}", timeout_seconds=120, check=True)
    return sample


def watched(guest: FilledGuest, command: str) -> Sample:
    """Run a command in the lab while the domain is watched."""
    done = guest.lab.run(f"{WATCH} {guest.name} {command}", timeout_seconds=SECONDS, check=True)
    seen = json.loads(done.stdout)
    print(
        f"{guest.name}: {command[:40]}: {seen['standing_ms']:.0f} ms, {seen['seconds']:.1f} s",
        file=sys.stderr,
    )
    return Sample(
        pause_ms=seen["standing_ms"],
        seconds=seen["seconds"],
        peak_mb=seen["peak_mb"],
        said=seen["said"],
    )
