"""How long a KVM domain stands still, and how fast it is back: ``make bench-kvm``, in the lab.

The pause of ``take`` stands against two scripts that a person would type: suspend, ``lvcreate -s``
of each disk, resume, which has no memory at all; and libvirt's live memory snapshot with the
``lvcreate`` in its gap.  Every pause is what lies between QEMU's own STOP and RESUME.  The lab is
emulated where there is no hardware for it: what is compared is measured in turn in the same lab,
and only the ratios mean something elsewhere.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from tests.bench import harness
from tests.bench.harness import Figure
from tests.lab.guests import FORGET_ALL, FORGET_SNAPSHOTS, Guest
from tests.lab.vm import Lab, Shape

RUNS = 3
FEW = 2
"""Where a round costs a minute under emulation."""
LAB_MIB = 6144
SMALL_MIB, LARGE_MIB = 512, 2048
FILLED_MIB = {SMALL_MIB: 64, LARGE_MIB: 512}
"""How much of its memory a guest has written once before anything is measured: no empty pages."""
DIRTY_MIB = 24
"""Written over and over while a guest is captured; with much more than that libvirt's own
snapshot never ends under emulation."""
CAPTURED_BEFORE = 2
SCRIPT_LIMITS = {1: 0.6, 2: None, 4: 0.5}
WATCH = "cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.host.qemustanding"
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


def main() -> None:
    """Measure, report, end."""
    figures: list[Figure] = []
    with Lab("kvm", shape=Shape(memory_mib=LAB_MIB)) as lab:
        lab.run(INSTALL, timeout_seconds=120, check=True)
        for count in (4, 2):
            for mib in (SMALL_MIB, LARGE_MIB):
                with filled(lab, f"b{count}", count, mib) as guest:
                    figures += against_script(guest)
        with filled(lab, "small", 1, SMALL_MIB) as small:
            figures += against_script(small)
            figures += rollbacks(small)
            with filled(lab, "large", 1, LARGE_MIB) as large:
                figures += sizes(small, large)
                figures += against_script(large)
                figures += against_libvirt(large)
                figures += rollbacks(large)
    harness.end(harness.report("kvm", figures))


class filled(Guest):  # noqa: N801 - reads as a state of the guest
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


def in_turn(runs: int = RUNS, **subjects: Callable[[], Sample]) -> dict[str, list[Sample]]:
    """Measure the subjects in turn; what has to warm up has done so in ``filled``."""
    return harness.alternate(runs, warm_up=0, **subjects)


def against_script(guest: filled) -> list[Figure]:
    """Compare the pause with that of suspend, lvcreate -s, resume; idle, then dirtying."""
    name = f"{guest.disks}disk" + "s" * (guest.disks > 1) + "_2g" * (guest.memory_mib == LARGE_MIB)
    figures = script_figures(guest, name, RUNS if guest.memory_mib == SMALL_MIB else FEW)
    with guest.dirtying():
        return figures + script_figures(guest, f"{name}_dirty", FEW)


def script_figures(guest: filled, name: str, runs: int) -> list[Figure]:
    measured = in_turn(runs, ours=lambda: take(guest), script=lambda: script(guest))
    return [
        compared(
            f"pause_vs_script_{name}",
            pauses(measured["ours"]),
            pauses(measured["script"]),
            "virsh suspend; lvcreate -s; virsh resume",
            SCRIPT_LIMITS[guest.disks],
        ),
        plain(f"pause_ms_{name}", "ms", pauses(measured["ours"])),
        plain(f"script_pause_ms_{name}", "ms", pauses(measured["script"])),
        *within(name, measured["ours"]),
    ]


def sizes(small: filled, large: filled) -> list[Figure]:
    """Compare the pause of a large guest with that of a small one, both idle."""
    measured = in_turn(FEW, large=lambda: take(large), small=lambda: take(small))
    peaks = [sample.peak_mb for sample in measured["large"] + measured["small"]]
    return [
        compared(
            "pause_2g_over_512m",
            pauses(measured["large"]),
            pauses(measured["small"]),
            "the same with 512 MB",
            1.3,
        ),
        plain("pause_ms_2g", "ms", pauses(measured["large"])),
        plain("pause_ms_512m", "ms", pauses(measured["small"])),
        *within("2g", measured["large"]),
        plain("take_seconds_2g", "s", [sample.seconds for sample in measured["large"]]),
        Figure(
            name="take_peak_rss_mb",
            unit="MB",
            samples=(max(peaks),),
            against="the highest of all; at most 150",
            limit=150.0,
        ),
    ]


def against_libvirt(guest: filled) -> list[Figure]:
    """Compare the pause under dirtying with libvirt's own live snapshot."""
    with guest.dirtying():
        measured = in_turn(FEW, ours=lambda: take(guest), stock=lambda: stock(guest))
    return [
        compared(
            "pause_vs_libvirt_2g_dirty",
            pauses(measured["ours"]),
            pauses(measured["stock"]),
            "virsh snapshot-create-as --live --memspec; lvcreate -s; virsh resume",
            0.25,
        ),
        plain("pause_ms_2g_dirty", "ms", pauses(measured["ours"])),
        plain("libvirt_pause_ms_2g_dirty", "ms", pauses(measured["stock"])),
    ]


def rollbacks(guest: filled) -> list[Figure]:
    """Compare a rollback with a script that does the same with the same plain image.

    Fast is a sparse image, which several threads read.  What a command takes to start is a large
    part of it when the guest is small, above all under emulation.
    """
    suffix = "_2g" * (guest.memory_mib == LARGE_MIB)
    plainly = guest.take("--name", "plain", "--image-format", "plain")
    folder = PurePosixPath("/var/lib/snapvm/domains", plainly["domain"]["uuid"], "plain")
    image = folder / plainly["memory"]["file"]
    guest.take("--name", "fast", "--image-format", "sparse")
    measured = in_turn(
        FEW,
        plain=lambda: roll_back(guest, "plain"),
        fast=lambda: roll_back(guest, "fast"),
        script=lambda: restore_by_script(guest, image),
    )
    seconds = {name: [sample.seconds for sample in them] for name, them in measured.items()}
    guest.lab.run(FORGET_ALL, timeout_seconds=120)
    by_hand = "virsh destroy; LV swap; virsh restore"
    return [
        compared(f"rollback_vs_script{suffix}", seconds["plain"], seconds["script"], by_hand, 1.2),
        compared(
            f"rollback_fast_vs_script{suffix}", seconds["fast"], seconds["script"], by_hand, 1.0
        ),
        *(plain(f"rollback_{how}_seconds{suffix}", "s", them) for how, them in seconds.items()),
    ]


def take(guest: filled) -> Sample:
    """Take a snapshot and forget it."""
    sample = watched(guest, f"snapvm take {guest.name} --json")
    guest.lab.run(FORGET_SNAPSHOTS, timeout_seconds=120, check=True)
    return sample


def script(guest: filled) -> Sample:
    """Do it by hand, the memory left out."""
    lines = [f"virsh -q suspend {guest.name}", *snapshots(guest), f"virsh -q resume {guest.name}"]
    return by_hand(guest, lines)


def stock(guest: filled) -> Sample:
    """Do it by hand with libvirt's memory snapshot."""
    disks = " ".join(f"--diskspec vd{chr(97 + n)},snapshot=manual" for n in range(guest.disks))
    memory = f"--memspec {STOCK_IMAGE},snapshot=external"
    create = f"virsh -q snapshot-create-as {guest.name} --no-metadata --live {memory} {disks}"
    sample = by_hand(guest, [create, *snapshots(guest), f"virsh -q resume {guest.name}"])
    guest.lab.run(f"rm {STOCK_IMAGE}", timeout_seconds=60, check=True)
    return sample


def snapshots(guest: filled) -> list[str]:
    return [
        f"lvcreate -qq -s -n {guest.name}-s{n} vg0/{guest.name}-d{n}" for n in range(guest.disks)
    ]


def by_hand(guest: filled, lines: Sequence[str]) -> Sample:
    sample = watched(guest, f"sh -ec {shlex.quote('; '.join(lines))}")
    gone = " ".join(f"vg0/{guest.name}-s{n}" for n in range(guest.disks))
    guest.lab.run(f"lvremove -qq -y {gone}", timeout_seconds=120, check=True)
    return sample


def roll_back(guest: filled, id_: str) -> Sample:
    """Roll back; what was current is forgotten afterwards."""
    sample = timed(guest, f"{INSTALLED} rollback --yes {guest.name}@{id_}")
    undo = f"$(snapvm list {guest.name} | grep -o '^{guest.name}@undo[^ ]*')"
    guest.lab.run(f"snapvm delete --yes {undo}", timeout_seconds=120, check=True)
    return sample


def restore_by_script(guest: filled, image: PurePosixPath) -> Sample:
    """Do what a rollback does, by hand."""
    name = f"{guest.name}-d0"
    sample = timed(
        guest,
        f"virsh -q destroy {guest.name}; lvrename -qq vg0/{name} vg0/old-{name};"
        f" lvcreate -qq -s -kn -prw -n {name} vg0/{name}.plain; lvchange -qq -ay -K vg0/{name};"
        f" virsh -q restore {image}",
    )
    guest.lab.run(f"lvremove -qq -y vg0/old-{name}", timeout_seconds=120, check=True)
    return sample


def timed(guest: filled, command: str) -> Sample:
    """Time a command that ends the domain: nothing can be listened to."""
    clock = (
        f"begun=$EPOCHREALTIME; ( set -e; {command} ) >/tmp/said 2>&1; status=$?;"
        " echo $begun $EPOCHREALTIME; exit $status"
    )
    done = guest.lab.run(["bash", "-c", clock], timeout_seconds=SECONDS)
    if done.status:
        text = guest.lab.run("cat /tmp/said", timeout_seconds=30).stdout
        raise RuntimeError(f"{command}: {text}")
    begun, ended = map(float, done.stdout.split())
    return Sample(pause_ms=0.0, seconds=ended - begun, peak_mb=0.0)


def watched(guest: filled, command: str) -> Sample:
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


def pauses(samples: Sequence[Sample]) -> list[float]:
    return [sample.pause_ms for sample in samples]


def within(name: str, samples: Sequence[Sample]) -> list[Figure]:
    """Return what the pause was spent on; LVM and memory are beside each other."""
    kinds = ("ahead", "suspend", "lvm", "memory", "resume")
    return [
        plain(
            f"pause_{kind}_ms_{name}",
            "ms",
            [
                sum(part["duration_ms"] for part in sample.parts if part["name"].startswith(kind))
                for sample in samples
            ],
        )
        for kind in kinds
    ]


def compared(
    name: str, ours: Sequence[float], theirs: Sequence[float], against: str, limit: float | None
) -> Figure:
    aim = against if limit is None else f"{against}: at most {limit:g}"
    return Figure(
        name=name, unit="times", samples=harness.ratios(ours, theirs), against=aim, limit=limit
    )


def plain(name: str, unit: str, samples: Sequence[float]) -> Figure:
    return Figure(name=name, unit=unit, samples=tuple(samples))


if __name__ == "__main__":
    main()
