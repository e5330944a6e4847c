"""How full thick snapshots are, as the kernel tells it: soon, and without a lock of LVM's.

``NAME: START LENGTH snapshot USED/TOTAL METADATA`` in sectors, or a word such as ``Invalid`` where
the numbers stand (linux, device-mapper/snapshot.rst; dmsetup(8)).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from snapvm.lvm import argv
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report

_LINE = re.compile(r"(?P<name>\S+): \d+ \d+ snapshot (?P<told>.+)")
_NUMBERS = re.compile(r"(?P<used>\d+)/(?P<total>\d+) (?P<metadata>\d+)\s*\Z")
_SECTOR_BYTES = 512


def around(report: Report, disks: Iterable[LogicalVolume]) -> tuple[LogicalVolume, ...]:
    """Return thick disks and all snapshots of them: at least two volumes, or none."""
    return tuple(each for disk in disks for each in (disk, *report.snapshots_of(disk)))


def applied(report: Report, said: str) -> Report:
    """Return a report with the snapshots as the kernel has them; of others nothing is known."""
    told = {found["name"]: found["told"] for found in map(_LINE.match, said.splitlines()) if found}
    return Report(
        (_as_told(volume, told) if volume.is_thick_snapshot else volume)
        for volume in report.volumes
    )


def _as_told(snapshot: LogicalVolume, told: dict[str, str]) -> LogicalVolume:
    said = told.get(argv.mapped_name(snapshot.ref))
    if said is None:
        return replace(snapshot, data_percent=None)
    numbers = _NUMBERS.match(said)
    if numbers is None:
        return snapshot.given_up()
    used, total, metadata = (int(numbers[name]) for name in ("used", "total", "metadata"))
    # What has metadata alone is empty to LVM (lvm2, lib/snapshot/snapshot.c, _snap_target_percent).
    percent = 100 * used / total if used != metadata else 0.0
    # dmeventd may have made the store larger meanwhile.
    return replace(snapshot, size_bytes=total * _SECTOR_BYTES, data_percent=percent)
