"""May volumes of these names be made?  Asked of what is planned, before anything is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from snapvm import naming
from snapvm.lvm.report import Report
from snapvm.refusals import VolumeRefused


def require_free(report: Report, vg: str, name: str) -> None:
    """Raise ``VolumeRefused`` when a volume of this name is there, or none can be."""
    if not naming.fits(vg, name):
        raise VolumeRefused(
            volume=f"{vg}/{name}",
            why="this name, which snapvm needs, is longer than device-mapper allows",
            remedy=f"give the group a shorter name: vgrename {vg}",
        )
    if report.lv_from_name(vg, name) is not None:
        raise VolumeRefused(
            volume=f"{vg}/{name}",
            why="it exists already, and snapvm needs its name",
            remedy="choose another --name, or remove the volume if nothing needs it",
        )


def require_distinct(names: Iterable[tuple[str, str]]) -> None:
    """Raise ``VolumeRefused`` when two volumes would be made of one name; a name is VG and LV."""
    for (vg, name), times in Counter(names).items():
        if times > 1:
            raise VolumeRefused(
                volume=f"{vg}/{name}",
                why="two disks would need this name",
                remedy="give one of the two disks another name with lvrename",
            )
