"""Whether a domain's word for a device means whatever has a volume's name, or just one device.

A rollback gives the name of a disk to a clone.  ``/dev/VG/LV`` and ``/dev/mapper/VG-LV`` go with it
(lvm(8)); ``dm-N``, what udev makes of uuids, and every link that leads to one of them stay behind,
with memory of today on the disk that was kept.
"""

from __future__ import annotations

import os
from pathlib import Path

from snapvm.lvm import argv
from snapvm.model import LvRef

DEV = Path("/dev")
_BY_IDENTITY = ("disk", "block")
_LINKS_LIMIT = 40
"""What the kernel follows at the most (path_resolution(7))."""


def goes_with(device: Path, volume: LvRef, dev: Path = DEV) -> bool:
    """Tell whether ``device`` leads to the volume by its name, link after link."""
    names = (dev / volume.vg / volume.lv, dev / "mapper" / argv.mapped_name(volume))
    path = device
    for _ in range(_LINKS_LIMIT):
        # Links among the folders on the way do not matter, and two slashes are one.
        folder = Path(os.path.realpath(path.parent))
        path = folder / path.name
        if path in names:
            return True
        if any(dev / kind in path.parents for kind in _BY_IDENTITY):
            return False
        try:
            path = folder / os.readlink(path)
        except OSError:
            return False
    return False


def why_not(device: Path) -> str:
    """Say what is wrong with a name that does not go with the volume."""
    return f"the domain calls it {device}, a name that a rollback cannot give to another volume"


def remedy(volume: LvRef) -> str:
    """Say what to do about it."""
    return f"call it {volume.path} in the domain's configuration"
