"""How long a Xen PV domain stands still, against ``xl save -c``: ``make bench-xen``, in the lab.

The lab is emulated where there is no hardware for it: what is compared is measured in turn in the
same lab, and only the ratios mean something elsewhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.bench import harness
from tests.bench.harness import Figure, plain, proportion
from tests.lab.guests import FORGET_ALL
from tests.lab.vm import Lab, Shape
from tests.lab.xenguests import XenGuest

RUNS = 3
SIZES_MIB = (128, 512, 1024)
SHAPE = Shape(memory_mib=4608)
"""Half is dom0's, which holds the image of the largest guest in its page cache; the rest takes it.
"""
DIRTY_MIB = 64
WRITTEN_MIB = 512
"""Guest with which the time of writing is compared: large enough to see, small enough to hold."""
WATCH = "cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.host.standing"
STOCK_IMAGE = "/var/tmp/stock"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One capture, by us or by the stock saver."""

    pause_ms: float
    memory_ms: float
    """The part of the pause that memory took; of the stock saver all of it."""
    seconds: float
    peak_mb: float


def main() -> None:
    """Measure, report, end; of some sizes only when they are named: ``... xen 128 512``."""
    figures: list[Figure] = []
    with Lab("xen", shape=SHAPE) as lab:
        for size_mib in [int(text) for text in sys.argv[1:]] or SIZES_MIB:
            options = ("--disks", "2", "--memory", str(size_mib))
            with XenGuest(lab, f"b{size_mib}", *options) as guest:
                for dirty_mib in (0, DIRTY_MIB):
                    print(f"bench: {size_mib} MiB, {dirty_mib} of it dirtied", file=sys.stderr)
                    guest.say(f"dirty {dirty_mib}")
                    figures += compared(guest, size_mib, is_dirty=bool(dirty_mib))
                if size_mib == WRITTEN_MIB:
                    print(f"bench: writing {size_mib} MiB, and comparing", file=sys.stderr)
                    guest.say("dirty 0")  # stock has no precopy whose time that would spoil
                    figures += written(guest)
    figures.append(normaliser())
    harness.end(harness.report("xen", figures))


def compared(guest: XenGuest, size_mib: int, *, is_dirty: bool) -> list[Figure]:
    """Capture one domain in both ways, in turn."""
    measured = harness.alternate(RUNS, ours=lambda: ours(guest), stock=lambda: stock(guest))
    mine, theirs = measured["ours"], measured["stock"]
    name = ("1g" if size_mib == 1024 else f"{size_mib}m") + ("_dirty" if is_dirty else "")
    stock_ms = [sample.pause_ms for sample in theirs]
    is_large = size_mib == 1024 and not is_dirty

    def against_save(what: str, values: list[float], limit: float) -> Figure:
        return proportion(f"{what}_vs_xl_save_{name}", values, stock_ms, "xl save -c", limit)

    return [
        against_save("pause_memory", [s.memory_ms for s in mine], 0.25 if is_large else 1.0),
        against_save("pause_total", [s.pause_ms for s in mine], 0.5 if is_large else 1.0),
        plain(f"pause_ms_{name}", "ms", [s.pause_ms for s in mine], "with 2 LVM snapshots"),
        plain(f"xl_save_pause_ms_{name}", "ms", stock_ms, "without any"),
        plain(f"take_peak_rss_mb_{name}", "MB", [s.peak_mb for s in mine], f"guest {size_mib} MiB"),
        proportion(
            f"take_vs_xl_save_seconds_{name}",
            [s.seconds for s in mine],
            [s.seconds for s in theirs],
            "all of the command",
        ),
    ]


def written(guest: XenGuest) -> list[Figure]:
    """Compare how long both savers take to write one and the same suspended guest durably.

    The stock saver does it in one pass, as ``take --stop`` does.  A capture that the guest survives
    reads it several times, for a pause that is shorter.
    """
    return [
        Figure(
            name="image_write_vs_stock",
            unit="times",
            samples=tuple(write_ratio(guest, "ends") for _ in range(RUNS)),
            against="at most 1.3, both in one pass",
            limit=1.3,
        ),
        plain(
            "image_write_precopied_vs_stock",
            "times",
            [write_ratio(guest) for _ in range(RUNS)],
            "precopy, window and the rest, against one pass",
        ),
    ]


def write_ratio(guest: XenGuest, how: str = "") -> float:
    """Save a guest by both savers in one window, and return by how much ours took longer."""
    script = f"cd /snapvm && PYTHONPATH=/snapvm python3 -m tests.lab.cross_check {guest.name} {how}"
    done = guest.lab.run(script, timeout_seconds=400, check=True)
    said = json.loads(done.stdout)
    assert not any(said[what] for what in ("types", "bytes", "missing", "differing")), said
    seconds = said["seconds"]
    return float(seconds["ours"] / seconds["stock"])


def normaliser() -> Figure:
    """Measure the normaliser natively, one thread."""
    argv = [sys.executable, "-m", "tests.bench.normaliser"]
    told = [
        json.loads(subprocess.run(argv, cwd=harness.ROOT, check=True, capture_output=True).stdout)
        for _ in range(RUNS)
    ]
    return Figure(
        name="normaliser_gb_per_s",
        unit="GB/s",
        samples=tuple(figures["normaliser_gb_per_s"] for figures in told),
        better="higher",
        against="at least 1, natively",
        limit=1.0,
    )


def watched(guest: XenGuest, command: str) -> dict[str, Any]:
    """Run a command in the lab while the domain is watched."""
    done = guest.lab.run(f"{WATCH} {guest.name} {command}", timeout_seconds=400, check=True)
    return dict(json.loads(done.stdout))


def ours(guest: XenGuest) -> Sample:
    """Take a snapshot; what filled the pause is in its record."""
    seen = watched(guest, f"snapvm take {guest.name} --json")
    parts = json.loads(seen["said"])["timing"]["parts"]
    memory_ms = sum(part["duration_ms"] for part in parts if part["name"] == "memory")
    guest.lab.run(FORGET_ALL, timeout_seconds=120, check=True)
    return Sample(
        pause_ms=seen["standing_ms"],
        memory_ms=memory_ms,
        seconds=seen["seconds"],
        peak_mb=seen["peak_mb"],
    )


def stock(guest: XenGuest) -> Sample:
    """Let xl save the domain and go on."""
    seen = watched(guest, f"xl save -c {guest.name} {STOCK_IMAGE}")
    guest.lab.run(f"rm {STOCK_IMAGE}", timeout_seconds=60, check=True)
    return Sample(
        pause_ms=seen["standing_ms"],
        memory_ms=seen["standing_ms"],
        seconds=seen["seconds"],
        peak_mb=seen["peak_mb"],
    )


if __name__ == "__main__":
    main()
