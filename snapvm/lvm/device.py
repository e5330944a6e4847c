"""From a block device to the logical volume it is, by its device-mapper uuid.

Names lie: several name one device, and file system links move between an origin and its
snapshot.  The kernel's dm uuid of a volume is ``LVM-`` and the 32 characters each of its group's
and its own uuid (lvm2, lib/misc/lvm-string.c, build_dm_uuid); what has more behind it is a layer
inside LVM and no volume of its own.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from snapvm.model import DmUuid, LvUuid, VgUuid

SYS_BLOCK = Path("/sys/dev/block")
LVM_UUID = re.compile(r"LVM-(?P<vg>\w{32})(?P<lv>\w{32})(?P<layer>-.+)?\Z")
"""The dm uuid of what LVM has made."""
_GROUPS = (6, 4, 4, 4, 4, 4, 6)
_WRITTEN, _DISCARDED = 6, 13
"""Of the numbers in ``stat``, those that count sectors (linux, block/stat.rst)."""

Number = tuple[int, int]
"""Of a device: major and minor."""


class NotAVolume(Exception):
    """A device that is no logical volume; the text says what it is instead."""


UuidOfDevice = Callable[[Path], DmUuid]
"""Tells which volume a block device is, by any name of it; raises ``NotAVolume``."""


def dm_uuid(device: Path, sys_block: Path = SYS_BLOCK) -> DmUuid:
    """Return the uuids of the volume that ``device`` is; raise ``NotAVolume``."""
    try:
        status = os.stat(device)
    except OSError as error:
        raise NotAVolume(f"{device}: {error.strerror}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise NotAVolume(f"{device} is no block device")
    entry = sys_block / f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return _uuid_of(device, entry)


def number(device: Path) -> Number | None:
    """Return the number of the device that a name leads to; None where it leads to none."""
    try:
        status = os.stat(device)
    except OSError:
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def written_sectors(device: Path | Number, sys_block: Path = SYS_BLOCK) -> int | None:
    """Return how much was ever written to a block device, or discarded; None when nobody says.

    The kernel counts from when the device appears to when it goes, whatever names it has meanwhile.
    """
    try:
        if isinstance(device, Path):
            status = os.stat(device)
            device = os.major(status.st_rdev), os.minor(status.st_rdev)
        text = (sys_block / f"{device[0]}:{device[1]}" / "stat").read_text()
        counts = [int(word) for word in text.split()]
        return counts[_WRITTEN] + sum(counts[_DISCARDED : _DISCARDED + 1])
    except (OSError, ValueError, IndexError):
        return None


def is_suspended(device: Path, sys_block: Path = SYS_BLOCK) -> bool:
    """Tell whether a device is suspended: no write to it comes back (linux, sysfs-block-dm).

    The kernel alone is asked, which nothing that waits for the device holds up.
    """
    found = number(device)
    if found is None:
        return False
    try:
        text = (sys_block / f"{found[0]}:{found[1]}" / "dm" / "suspended").read_text()
    except OSError:
        return False
    return text.strip() == "1"


def _uuid_of(device: Path, entry: Path) -> DmUuid:
    try:
        text = (entry / "dm" / "uuid").read_text().strip()
    except OSError:
        what = "a partition" if (entry / "partition").exists() else "not made by LVM"
        raise NotAVolume(f"{device} is {what}{_beneath(entry)}") from None
    match = LVM_UUID.match(text)
    if match is None:
        kind = text.partition("-")[0] or "device-mapper"
        raise NotAVolume(f"{device} is a {kind} device{_beneath(entry)}")
    if match["layer"]:
        raise NotAVolume(f"{device} is an inner layer of LVM ({match['layer'][1:]})")
    return DmUuid(vg=VgUuid(dashed(match["vg"])), lv=dashed(match["lv"]))


def dashed(plain: str) -> LvUuid:
    """Put the dashes back that LVM prints in a uuid."""
    parts: list[str] = []
    for length in _GROUPS:
        parts.append(plain[:length])
        plain = plain[length:]
    return LvUuid("-".join(parts))


def _beneath(entry: Path) -> str:
    try:
        names = sorted(slave.name for slave in (entry / "slaves").iterdir())
    except OSError:
        return ""
    return f" on {', '.join(names)}" if names else ""
