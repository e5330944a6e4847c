"""What of this host lies on a volume: partitions mapped by kpartx, other LVM, md, a crypt device.

The kernel names it in ``holders`` of the volume's entry in sysfs; whoever has only opened the
device, as QEMU has, is not there.  LVM's own layers do not lie on the device of the volume itself:
snapshots of an origin, and thin volumes of an external one, lie on its ``-real`` (lvm2,
lib/activate/dev_manager.c, _add_snapshot_target_to_dtree and lib/thin/thin.c).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from snapvm.lvm import device
from snapvm.lvm.device import LVM_UUID, Number
from snapvm.model import LvRef

_PARTITION = re.compile(r"part\d+-")
"""kpartx/devmapper.c of multipath-tools, UUID_PREFIX."""
_GROUP = re.compile(r"(?P<vg>(?:[^-]|--)+)-(?!-)")
"""The beginning of a volume's name in device-mapper, where each hyphen of a name stands twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A device that lies on a volume, and what takes it away."""

    device: Path
    remedy: str


def of(
    volume: LvRef, number: Number | None, sys_block: Path = device.SYS_BLOCK
) -> tuple[Holder, ...]:
    """Return what lies on a volume; on one that is not active there is nothing.

    ``number`` is that of its device, where LVM has told it; else the device is found by its name.
    """
    number = number or device.number(volume.path)
    if number is None:
        return ()
    entry = sys_block / f"{number[0]}:{number[1]}"
    group = _group_uuid(_told(entry, "uuid"))
    try:
        above = sorted((entry / "holders").iterdir())
    except OSError:  # it has gone meanwhile
        return ()
    return tuple(_holder(each, volume) for each in above if not _is_layer(each, group))


def finding_users(volume: LvRef) -> str:
    """Return what to type to see who has a volume open: a program, or a device above it."""
    return f"`fuser -v {volume.path}` and `lsblk {volume.path}` show it"


def _is_layer(entry: Path, group: str) -> bool:
    """Tell whether this is inside LVM: a layer of a volume of the same group.

    A group that was made on a disk has layers of its own there, such as a pool's ``-tdata``.
    """
    match = LVM_UUID.match(_told(entry, "uuid"))
    return match is not None and bool(match["layer"]) and match["vg"] == group


def _group_uuid(dm_uuid: str) -> str:
    match = LVM_UUID.match(dm_uuid)
    return "" if match is None else match["vg"]


def _holder(entry: Path, volume: LvRef) -> Holder:
    name, dm_uuid = _told(entry, "name"), _told(entry, "uuid")
    if not name:
        path = Path("/dev", entry.name)
        is_md = entry.name.startswith("md")
        return Holder(device=path, remedy=f"mdadm --stop {path}" if is_md else "lsblk")
    group = _GROUP.match(name)
    if _PARTITION.match(dm_uuid):
        remedy = f"kpartx -d {volume.path}"
    elif LVM_UUID.match(dm_uuid) and group is not None:
        remedy = f"vgchange -an {group['vg'].replace('--', '-')}"
    elif dm_uuid.startswith("CRYPT-"):
        remedy = f"cryptsetup close {shlex.quote(name)}"
    else:
        remedy = f"dmsetup remove {shlex.quote(name)}"
    return Holder(device=Path("/dev/mapper", name), remedy=remedy)


def _told(entry: Path, what: str) -> str:
    try:
        return (entry / "dm" / what).read_text().strip()
    except OSError:  # no device of device-mapper
        return ""
