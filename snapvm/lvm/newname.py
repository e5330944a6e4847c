"""May volumes of these names be made?  Asked of what is planned, before anything is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from snapvm import naming
from snapvm.lvm import argv
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import VolumeKind
from snapvm.refusals import VolumeRefused


def require_free(report: Report, vg: str, name: str, otherwise: str) -> None:
    """Raise ``VolumeRefused`` when a volume of this name is there, or none can be.

    ``otherwise`` says how to get another name.
    """
    if not naming.fits(vg, name):
        raise VolumeRefused(
            volume=f"{vg}/{name}",
            why="this name, which snapvm needs, is longer than device-mapper allows",
            remedy=f"shut its domains off, give the group a shorter name (vgrename {vg} NEWNAME), "
            "and name that in their definitions",
        )
    if report.lv_from_name(vg, name) is not None:
        raise VolumeRefused(
            volume=f"{vg}/{name}",
            why="it exists already, and snapvm needs its name",
            remedy=f"{otherwise}, or remove the volume if nothing needs it: lvremove {vg}/{name}",
        )


def require_layer(disk: LogicalVolume) -> None:
    """Raise ``VolumeRefused`` for a thick disk whose name leaves no room for that of its layer.

    With its first snapshot its blocks become a device of its name and ``-real``.  LVM would find
    that too long, but only once the domain stands still (lvm2, dev_manager.c,
    _add_new_lv_to_dtree).
    """
    is_thick = disk.kind is VolumeKind.THICK
    if is_thick and len(argv.mapped_name(disk.ref, "real")) > naming.DM_NAME_LIMIT:
        raise VolumeRefused(
            volume=str(disk.ref),
            why="its name is so long that device-mapper allows no thick snapshot of it",
            remedy=f"shut the domain off, give the volume a shorter one (lvrename {disk.ref} "
            "NEWNAME), and name that in the domain's definition",
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
