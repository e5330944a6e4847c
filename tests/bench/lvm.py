"""The LVM part of the pause against plain ``lvcreate -s``: ``make bench-lvm``, in the lab.

The lab is emulated where there is no hardware for it: what is compared is measured in turn in the
same lab, and only the ratios mean something elsewhere.
"""

from __future__ import annotations

import json

from snapvm.diagnosis import DEARER_BY_EACH_PERCENT
from tests.bench import harness
from tests.bench.harness import Figure, plain, proportion
from tests.lab.vm import Lab

RUNS = 5
DISKS = (1, 4, 8)
SIBLINGS = (5, 20)
THIN_LIMIT = 0.5
THICK_LIMIT = 0.65


def main() -> None:
    """Measure, report, end."""
    figures: list[Figure] = []
    with Lab("kvm") as lab:
        for count in DISKS:
            figures += compared(lab, "thin", count, limit=THIN_LIMIT)
        for count in DISKS:
            figures += compared(lab, "thick", count, limit=THICK_LIMIT)
        for siblings in SIBLINGS:
            figures += compared(lab, "thick", 1, siblings=siblings)
            figures.append(growth(figures, siblings))
    harness.end(harness.report("lvm", figures))


def compared(
    lab: Lab, kind: str, count: int, *, siblings: int = 0, limit: float | None = None
) -> list[Figure]:
    """Snapshot so many disks in both ways, in turn."""
    script = (
        "cd /snapvm && PYTHONPATH=/snapvm "
        f"python3 -m tests.lab.host.lvmtimes {kind} {count} {siblings} {RUNS}"
    )
    seconds = json.loads(lab.run(script, timeout_seconds=900, check=True).stdout)
    name = f"{kind}_{count}" + (f"_siblings_{siblings}" if siblings else "")
    in_ms = {what: [value * 1000 for value in values] for what, values in seconds.items()}
    return [
        proportion(name, seconds["ours"], seconds["plain"], "lvcreate -s", limit),
        *(plain(f"{name}_{what}_ms", "ms", in_ms[what]) for what in ("ours", "plain")),
    ]


def growth(figures: list[Figure], siblings: int) -> Figure:
    """How many times as long one more snapshot takes as the first one; `doctor` tells it."""
    samples = {figure.name: figure.samples for figure in figures}
    name = f"thick_1_siblings_{siblings}"
    told = 1 + siblings * DEARER_BY_EACH_PERCENT / 100
    against = f"none of them: `snapvm doctor` says {told:.2g}"
    first = samples["thick_1_ours_ms"]
    return proportion(f"{name}_growth", samples[f"{name}_ours_ms"], first, against)


if __name__ == "__main__":
    main()
