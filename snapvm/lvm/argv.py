"""Make LVM's tags and command lines: pure functions from values to text (lvm(8) and its pages)."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable

from snapvm.model import LvRef, LvUuid, Role, VgUuid

TAG_OURS = "snapvm=1"
TAG_LOST = "snapvm.lost=1"
"""Of a thick snapshot that the kernel has given up.  It writes that into the store, or tries to: if
it was because the store could not be written, the snapshot looks whole after the next boot, and
lacks what changed since (linux, dm-snap-persistent.c, persistent_drop_snapshot)."""
_DISK = "snapvm.disk="
_GROUP = "snapvm.vg="
_NAME = "snapvm.lv="

Argv = tuple[str, ...]

_BRISK = ("--config", "activation{reserved_memory=0}global{wait_for_locks=1}global{notify_dbus=0}")
"""Settings for quick commands, in one word because a waiting lvm reads lines (lvm.conf(5)).

Two lvms work on one group in the pause, and each has to wait for the other's lock.  They do not
lock memory, which would take half of the time of a short command.  That is meant against a
deadlock, in which an lvm is swapped out to a device that it has suspended itself.  But these
commands suspend a guest's disk, on which the host has no swap.  In the lab, four thin snapshots
took 0.37 s instead of 0.65.  Nor do they wait for an lvmdbusd, which a later command tells.
"""
_HEEDFUL = "activation/retry_deactivation=1 log/report_command_log=0"
"""Settings for all others: udev may look into a device just now, and what is said of a failure
belongs on standard error, not in a report (lvm2, activate.c and log.c)."""

_REMOVE = ("lvm", "lvremove", "--yes", "--nohistory")
"""``--nohistory``: with record_lvs_history=1 in lvm.conf LVM would keep the name of each removed
thin snapshot, mostly for good.  A snapshot of that name could not be made again, which would be
noticed only in the pause, and the metadata of the group would fill (lvm2, pool_manip.c,
_set_up_historical_lv)."""


def is_ours(tag: str) -> bool:
    """Tell whether a tag is snapvm's, and not a user's own such as `snapvm-nightly`."""
    return tag == TAG_OURS or tag.startswith("snapvm.")


def set_tag(set_: str) -> str:
    """Return the tag that names the set a volume belongs to."""
    return f"snapvm.set={set_}"


def sets_in(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the sets that a volume's tags name: one, unless somebody has added more."""
    prefix = set_tag("")
    return tuple(tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix))


def disk_tag(origin: LvRef) -> str:
    """Return the tag that names the disk by uuid, because LVM may forget the origin."""
    return f"{_DISK}{_plain(origin.uuid)}"


def disk_in(tags: Iterable[str]) -> str:
    """Return the uuid, without its dashes, that a volume's ``disk_tag`` names; empty without it."""
    return next((tag.removeprefix(_DISK) for tag in tags if tag.startswith(_DISK)), "")


def name_in(tags: Iterable[str]) -> str:
    """Return the name that the tags of a volume say its disk had; empty when they do not say.

    A rollback gives the uuid that ``disk_tag`` names another name, and this one to a clone.
    """
    return next((tag.removeprefix(_NAME) for tag in tags if tag.startswith(_NAME)), "")


def group_tag(vg_uuid: VgUuid) -> str:
    """Return the tag that names the group in which a volume is made; a copied group has it too."""
    return f"{_GROUP}{_plain(vg_uuid)}"


def is_foreign(tags: Iterable[str], group: VgUuid, group_tags: Collection[str]) -> bool:
    """Tell whether a volume's tags name a group that is neither ``group`` nor its former self."""
    made_in = [tag.removeprefix(_GROUP) for tag in tags if tag.startswith(_GROUP)]
    return any(not goes_by(group, group_tags, VgUuid(uuid)) for uuid in made_in)


def became_tag(former: VgUuid, group: VgUuid) -> str:
    """Return the tag by which an administrator says which group a group was before.

    It names the present group as well, so that it does not count in a copy of the group.
    """
    return f"snapvm.was={_plain(former)}/{_plain(group)}"


def goes_by(group: VgUuid, group_tags: Collection[str], uuid: VgUuid) -> bool:
    """Tell whether a group has this uuid, or is tagged as the group that had it."""
    return _plain(group) == _plain(uuid) or became_tag(uuid, group) in group_tags


def _plain(uuid: str) -> str:
    return uuid.replace("-", "")


def role_tag(role: Role) -> str:
    """Return the tag that says what a volume is for."""
    return f"snapvm.st={role.value}"


def tags(set_: str, origin: LvRef, role: Role) -> tuple[str, ...]:
    """Return all tags that a volume of snapvm gets here."""
    group = (group_tag(origin.vg_uuid),) if origin.vg_uuid else ()
    disk = (disk_tag(origin), f"{_NAME}{origin.lv}")
    return (TAG_OURS, set_tag(set_), *disk, *group, role_tag(role))


def thin_snapshot(origin: LvRef, name: str, with_tags: Iterable[str]) -> Argv:
    """Snapshot a thin volume: read-only, inactive, skipped at boot.

    There is no udev event to wait for, because no device appears.  The next command outside the
    pause writes the backup file.  The pool's device is neither suspended nor reloaded and stays
    monitored: to talk with dmeventd about it twice would take a sixth of the command (in the lab).
    """
    return (
        "lvm",
        "lvcreate",
        *_BRISK,
        "--snapshot",
        "--setactivationskip",
        "y",
        "--activate",
        "n",
        "--permission",
        "r",
        "--autobackup",
        "n",
        "--noudevsync",
        "--ignoremonitoring",
        "--name",
        name,
        *_added(with_tags),
        str(origin),
    )


def new_store(vg: str, name: str, size_bytes: int, with_tags: Iterable[str]) -> Argv:
    """Make the volume that will store a thick snapshot's copies, with its header zeroed.

    The kernel would use the header of an earlier snapshot there (dm-snap-persistent.c,
    read_header).  ``--zero`` needs a device.
    """
    return (
        "lvm",
        "lvcreate",
        "--yes",
        "--wipesignatures",
        "y",
        "--zero",
        "y",
        "--activate",
        "y",
        "--size",
        f"{size_bytes}b",
        "--name",
        name,
        *_added(with_tags),
        vg,
    )


def read_only(volumes: Iterable[LvRef]) -> Argv:
    """Make volumes read-only; a snapshot of such a store is read-only too."""
    return ("lvm", "lvchange", "--permission", "r", *map(str, volumes))


def attach_store(origin: LvRef, name: str, chunk_bytes: int) -> Argv:
    """Make a store, which has no device, the snapshot of a volume: one commit, one suspend.

    The store is not zeroed again, which would need a device: ``new_store`` has done it.  So the
    command does not wait for udev, which is most of its time (0.25 s instead of 0.87 in the lab).
    """
    return (
        "lvm",
        "lvconvert",
        *_BRISK,
        "--yes",
        "--type",
        "snapshot",
        "--chunksize",
        f"{chunk_bytes}b",
        "--zero",
        "n",
        "--noudevsync",
        str(origin),
        name,
    )


def extend_threshold(profile: str) -> Argv:
    """Ask above which fill thin pools are extended, and refuse new volumes; takes no lock.

    A pool, or its group, may have a ``profile`` of its own (lvmthin(7)).
    """
    profiled = ("--metadataprofile", profile) if profile else ()
    setting = "activation/thin_pool_autoextend_threshold"
    return ("lvm", "lvmconfig", *profiled, "--type", "full", setting)


def statuses(volumes: Iterable[LvRef]) -> Argv:
    """Ask for the status of volumes' devices; of several each line has its name (dmsetup(8))."""
    return ("dmsetup", "status", "--noflush", *map(mapped_name, volumes))


def snapshot_target() -> Argv:
    """Ask for the version of the target of thick snapshots, which loads its module."""
    return ("dmsetup", "target-version", "snapshot")


def mapped_name(volume: LvRef, layer: str = "") -> str:
    """Return the device-mapper name of a volume, or of a layer below it (lvm(8), VALID NAMES)."""
    parts = [volume.vg, volume.lv, *([layer] if layer else [])]
    return "-".join(part.replace("-", "--") for part in parts)


def thin_clone(snapshot: LvRef, name: str, with_tags: Iterable[str], read_ahead: str) -> Argv:
    """Make a writable copy of a snapshot that can become a disk, and wait for its device."""
    return (
        "lvm",
        "lvcreate",
        *_BRISK,
        "--snapshot",
        "--setactivationskip",
        "n",
        "--activate",
        "y",
        "--permission",
        "rw",
        "--readahead",
        read_ahead,
        "--name",
        name,
        *_added(with_tags),
        str(snapshot),
    )


def rename(vg: str, old: str, new: str, *, waits_for_udev: bool = True) -> Argv:
    """Give a volume another name; whoever holds it open keeps it (lvrename(8)).

    LVM archives no metadata first, which takes time and room in /etc/lvm, when the domain stands
    still and a disk may be without its name.  The command that made the other volume has done so.
    To wait for udev takes two thirds of the time (0.6 s instead of 0.2 in the lab).
    """
    brisk = () if waits_for_udev else ("--noudevsync",)
    return ("lvm", "lvrename", vg, old, new, *_BRISK, "--autobackup", "n", *brisk)


def activate(volumes: Iterable[LvRef]) -> Argv:
    """Make the devices of volumes appear, and wait for them."""
    return ("lvm", "lvchange", "--activate", "y", "--ignoreactivationskip", *map(str, volumes))


def deactivate(volumes: Iterable[LvRef]) -> Argv:
    """Take the devices of volumes away."""
    return ("lvm", "lvchange", "--activate", "n", *map(str, volumes))


def refresh(volumes: Iterable[LvRef]) -> Argv:
    """Have devices be, and run, as LVM's metadata say; also those that are suspended."""
    return ("lvm", "lvchange", "--refresh", *map(str, volumes))


def shelve(volume: LvRef, add: Iterable[str]) -> Argv:
    """Turn a former disk into a snapshot: read-only, skipped at boot, tagged."""
    return (
        "lvm",
        "lvchange",
        "--permission",
        "r",
        "--setactivationskip",
        "y",
        *_added(add),
        str(volume),
    )


def retag(volumes: Iterable[LvRef], *, add: Iterable[str], remove: Iterable[str]) -> Argv:
    """Change the tags of volumes, all in one command."""
    removed = [word for tag in remove for word in ("--deltag", tag)]
    return ("lvm", "lvchange", *_added(add), *removed, *map(str, volumes))


def untagging(volume: LvRef, tags_: Iterable[str]) -> str:
    """Return what to type to take snapvm's tags off a volume; ``tags_`` are all that it has."""
    command = retag([volume], add=(), remove=sorted(filter(is_ours, tags_)))
    return shlex.join(command[1:])


def not_at_boot(volumes: Iterable[LvRef]) -> Argv:
    """Keep LVM from activating volumes automatically; can be repeated (lvm(8), AUTOACTIVATION)."""
    return ("lvm", "lvchange", "--setautoactivation", "n", *map(str, volumes))


def skip_activation(volumes: Iterable[LvRef]) -> Argv:
    """Have LVM activate volumes only with an explicit option; can be repeated (lvchange(8))."""
    return ("lvm", "lvchange", "--setactivationskip", "y", *map(str, volumes))


def remove_set(vg: str, set_: str, role: Role) -> Argv:
    """Remove the volumes of a set that have a role, and nothing else.

    LVM checks the tags under its own lock, so a foreign volume with the same name is not removed
    (lvmreport(7), SELECTION).
    """
    tags_ = (TAG_OURS, set_tag(set_), role_tag(role))
    return (*_REMOVE, "--select", " && ".join(f"lv_tags={{{tag}}}" for tag in tags_), vg)


def patient(command: Argv) -> Argv:
    """Return a command that waits for whoever works on the group, and says why it fails.

    Whatever lvm.conf says: with global/wait_for_locks=0 it would fail beside one for another
    domain.
    """
    if "--config" not in command:
        return (*command[:2], "--config", f"global/wait_for_locks=1 {_HEEDFUL}", *command[2:])
    at = command.index("--config") + 1  # of ``_BRISK``
    return (*command[:at], f"{command[at]} {_HEEDFUL}", *command[at + 1 :])


def without_archive(command: Argv) -> Argv:
    """Return a command that writes no backup of the group's metadata (vgcfgbackup(8)).

    Of those that take ``--autobackup``: lvchange, lvcreate, lvremove and lvrename.
    """
    return (*command[:2], "--autobackup", "n", *command[2:])


def remove_volumes(vg: str, uuids: Iterable[LvUuid]) -> Argv:
    """Remove volumes of snapvm by uuid, whatever their names are now."""
    which = " || ".join(f"lv_uuid={uuid}" for uuid in uuids)
    return (*_REMOVE, "--select", f"lv_tags={{{TAG_OURS}}} && ({which})", vg)


def _added(tags_: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for tag in tags_ for word in ("--addtag", tag))
