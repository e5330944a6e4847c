"""The clones that become disks: do they have devices and names, and has nobody else got them?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from snapvm import occupancy, retry
from snapvm.failures import RollbackFailed
from snapvm.lvm.device import NotAVolume
from snapvm.lvm.volumes import Lvm
from snapvm.model import LvRef, LvUuid, Record
from snapvm.planning import RollbackPlan
from snapvm.refusals import VolumeRefused
from snapvm.rollbackjournal import JournalDisk


def require_devices(lvm: Lvm, plan: RollbackPlan) -> None:
    """Raise ``RollbackFailed`` when LVM made a clone and gave it no device; the domain still runs.

    That is no failure to LVM where lvm.conf's activation/volume_list says so.
    """
    for disk in plan.thin_disks:
        clone = LvRef(vg=disk.current.vg, lv=disk.clone_name, uuid=LvUuid(""))
        try:
            retry.named(partial(_require_another, lvm, clone))
        except retry.NotYet as what:
            raise RollbackFailed(
                domain=plan.domain.name,
                id=plan.record.id,
                why=f"LVM gave the new volume of disk {disk.target} no device ({what}); "
                "does activation/volume_list in lvm.conf leave it out, or is udev not at work?",
            ) from None


def require_bare(lvm: Lvm, plan: RollbackPlan, *, is_exchanged: bool = False) -> None:
    """Raise ``RollbackFailed`` for a clone that something of this host lies on; the domain is on.

    udev lets mdadm or LVM have whatever looks like theirs, and a guest has such things in its disk.
    Its memory would be restored above an array that this host writes to.  So a clone is looked at
    as soon as it exists and, because LVM may come late, again once it ``is_exchanged`` and has the
    disk's name.  Only the kernel is asked, which is quick: the domain stands still then.
    """
    for disk in plan.thin_disks:
        name = disk.current.lv if is_exchanged else disk.clone_name
        clone = LvRef(vg=disk.current.vg, lv=name, uuid=LvUuid(""))
        try:
            occupancy.require_bare(clone, lvm.holders_of(clone, None))
        except VolumeRefused as refused:
            raise RollbackFailed(
                domain=plan.domain.name,
                id=plan.record.id,
                why=f"{refused}; keep this host from it (mdadm.conf: AUTO -all; lvm.conf: "
                f"devices/scan_lvs=0), and: {refused.hint()}",
            ) from refused


def require_names(
    lvm: Lvm, record: Record, disks: Iterable[JournalDisk], limit_seconds: float = math.inf
) -> None:
    """Raise ``RollbackFailed`` while the name of a thin disk leads to the one that had it before.

    udev moves the name, and the lvm that exchanges the disks does not wait for that, while the
    domain stands still; nor does any that has activation/udev_sync=0, or finds no udevd.  Memory
    would then be restored upon the newer disk, which is to be kept.
    """
    for disk in disks:
        if not disk.is_thick:
            try:
                retry.named(partial(_require_another, lvm, disk.former), limit_seconds)
            except retry.NotYet as what:
                raise RollbackFailed(
                    domain=record.domain,
                    id=record.id,
                    why=f"{what}, which udev has not changed; is it at work "
                    "(`udevadm settle`), and does LVM wait for it (activation/udev_sync)?",
                ) from None


def _require_another(lvm: Lvm, former: LvRef) -> None:
    """Raise ``NotYet`` while the name of a volume is not there, or leads to this one."""
    try:
        found = lvm.uuid_of_device(former.path)
    except NotAVolume as what:
        raise retry.NotYet(str(what)) from None
    if found.lv == former.uuid:
        raise retry.NotYet(f"{former.path} still leads to the former disk")
