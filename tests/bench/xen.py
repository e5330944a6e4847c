"""How long a Xen PV domain stands still, against ``xl save -c``: ``make bench-xen``, in the lab.

The lab is emulated where there is no hardware for it: what is compared is measured in turn in the
same lab, and only the ratios mean something elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.bench import harness
from tests.bench.harness import Figure
from tests.lab.guests import snapvm
from tests.lab.vm import Lab
from tests.lab.xenguests import XenGuest

RUNS = 3
SIZES_MIB = (128, 512, 1024)
DIRTY_MIB = 64
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
    """Measure, report, end."""
    figures: list[Figure] = []
    with Lab("xen") as lab:
        for size_mib in SIZES_MIB:
            options = ("--disks", "2", "--memory", str(size_mib))
            with XenGuest(lab, f"b{size_mib}", *options) as guest:
                for dirty_mib in (0, DIRTY_MIB):
                    guest.say(f"dirty {dirty_mib}")
                    figures += compared(guest, size_mib, is_dirty=bool(dirty_mib))
    harness.end(harness.report("xen", figures))


def compared(guest: XenGuest, size_mib: int, *, is_dirty: bool) -> list[Figure]:
    """Capture one domain in both ways, in turn."""
    measured = harness.alternate(RUNS, ours=lambda: ours(guest), stock=lambda: stock(guest))
    mine, theirs = measured["ours"], measured["stock"]
    name = ("1g" if size_mib == 1024 else f"{size_mib}m") + ("_dirty" if is_dirty else "")
    stock_ms = [sample.pause_ms for sample in theirs]
    is_large = size_mib == 1024 and not is_dirty

    def ratio(what: str, values: list[float], limit: float) -> Figure:
        return Figure(
            name=f"{what}_vs_xl_save_{name}",
            unit="times",
            samples=harness.ratios(values, stock_ms),
            against=f"at most {limit:g}",
            limit=limit,
        )

    return [
        ratio("pause_memory", [s.memory_ms for s in mine], 0.25 if is_large else 1.0),
        ratio("pause_total", [s.pause_ms for s in mine], 0.5 if is_large else 1.0),
        plain(f"pause_ms_{name}", "ms", [s.pause_ms for s in mine], "with 2 LVM snapshots"),
        plain(f"xl_save_pause_ms_{name}", "ms", stock_ms, "without any"),
        plain(f"take_peak_rss_mb_{name}", "MB", [s.peak_mb for s in mine], f"guest {size_mib} MiB"),
        plain(
            f"take_vs_xl_save_seconds_{name}",
            "times",
            list(harness.ratios([s.seconds for s in mine], [s.seconds for s in theirs])),
            "all of the command",
        ),
    ]


def plain(name: str, unit: str, samples: list[float], against: str) -> Figure:
    return Figure(name=name, unit=unit, samples=tuple(samples), against=against)


def watched(guest: XenGuest, command: str) -> dict[str, Any]:
    """Run a command in the lab while the domain is watched."""
    done = guest.lab.run(f"{WATCH} {guest.name} {command}", timeout_seconds=400, check=True)
    return dict(json.loads(done.stdout))


def ours(guest: XenGuest) -> Sample:
    """Take a snapshot; what filled the pause is in its record."""
    seen = watched(guest, f"snapvm take {guest.name} --name bench")
    shown = snapvm(guest.lab, "show", f"{guest.name}@bench", "--json").stdout
    parts = json.loads(shown)["timing"]["parts"]
    memory_ms = sum(part["duration_ms"] for part in parts if part["name"] == "memory")
    snapvm(guest.lab, "delete", "--yes", f"{guest.name}@bench")
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
