"""Command lines for LVM: pure functions from values to argument vectors (lvm(8) and its pages)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from snapvm.model import LvRef, LvUuid, Role, VgUuid

TAG_OURS = "snapvm=1"
_DISK = "snapvm.disk="
_GROUP = "snapvm.vg="

Argv = tuple[str, ...]

_BRISK = ("--config", "activation{reserved_memory=0}global{wait_for_locks=1}")
"""What lvm.conf may have otherwise, as one word for an lvm that is told it on a line (lvm.conf(5)).

Two lvms work on one group in the window, and each waits for the other's lock.  They lock no memory,
which is half of a short command and against a deadlock: an lvm that is swapped out waits for the
device that it suspended itself.  What these commands suspend is a guest's disk, below which no swap
of the host's lies.  In the lab, four thin snapshots took 0.37 s instead of 0.65.
"""


_REMOVE = ("lvm", "lvremove", "--yes", "--nohistory")
"""With record_lvs_history=1 in lvm.conf LVM keeps the name of each thin snapshot that goes, mostly
for good: none could be made by that name again, which only the window would tell, and the metadata
of the group would fill with them (lvm2, pool_manip.c, _set_up_historical_lv)."""


def is_ours(tag: str) -> bool:
    """Tell whether a tag is one that snapvm gave, and not a user's own, as `snapvm-nightly` is."""
    return tag == TAG_OURS or tag.startswith("snapvm.")


def set_tag(set_: str) -> str:
    """Return the tag that names the set a volume belongs to."""
    return f"snapvm.set={set_}"


def sets_in(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the sets that the tags of a volume name: one, unless somebody has added another."""
    prefix = set_tag("")
    return tuple(tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix))


def disk_tag(origin: LvRef) -> str:
    """Return the tag that names the disk by uuid: LVM forgets origins, a tag stays."""
    return f"{_DISK}{_plain(origin.uuid)}"


def disk_in(tags: Iterable[str]) -> str:
    """Return the uuid, without its dashes, that a volume's ``disk_tag`` names; empty without it."""
    return next((tag.removeprefix(_DISK) for tag in tags if tag.startswith(_DISK)), "")


def group_tag(vg_uuid: VgUuid) -> str:
    """Return the tag that names the group a volume is made in: a copy of that has it as well."""
    return f"{_GROUP}{_plain(vg_uuid)}"


def is_foreign(tags: Iterable[str], group: VgUuid, group_tags: Collection[str]) -> bool:
    """Tell whether the tags of a volume name another group, which this one has not become."""
    made_in = [tag.removeprefix(_GROUP) for tag in tags if tag.startswith(_GROUP)]
    return any(not goes_by(group, group_tags, VgUuid(uuid)) for uuid in made_in)


def became_tag(former: VgUuid, group: VgUuid) -> str:
    """Return the tag by which an administrator says of a group what it was before.

    It names the group itself as well, so that it says nothing of a copy, which has it too.
    """
    return f"snapvm.was={_plain(former)}/{_plain(group)}"


def goes_by(group: VgUuid, group_tags: Collection[str], uuid: VgUuid) -> bool:
    """Tell whether a group is the one of a uuid, or has become what that was."""
    return _plain(group) == _plain(uuid) or became_tag(uuid, group) in group_tags


def _plain(uuid: str) -> str:
    return uuid.replace("-", "")


def role_tag(role: Role) -> str:
    """Return the tag that says what a volume is for."""
    return f"snapvm.st={role.value}"


def tags(set_: str, origin: LvRef, role: Role) -> tuple[str, ...]:
    """Return all tags of a volume of ours."""
    group = (group_tag(origin.vg_uuid),) if origin.vg_uuid else ()
    return (TAG_OURS, set_tag(set_), disk_tag(origin), *group, role_tag(role))


def thin_snapshot(origin: LvRef, name: str, with_tags: Iterable[str]) -> Argv:
    """Snapshot a thin volume: read-only, inactive, skipped at boot.

    No udev event has to be waited for, since no device appears; the backup file is written by
    the next command outside the window.  The pool, whose device is neither suspended nor reloaded,
    stays monitored: talking about it with dmeventd twice is a sixth of the command (in the lab).
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
    """Make the plain volume that is going to hold a thick snapshot's copies; its header is zeroed.

    A header of an earlier snapshot would be taken for this one's (dm-snap-persistent.c,
    read_header); ``--zero`` needs a device.
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
    """Make volumes read-only; a snapshot is what its store is."""
    return ("lvm", "lvchange", "--permission", "r", *map(str, volumes))


def attach_store(origin: LvRef, name: str, chunk_bytes: int) -> Argv:
    """Make a store, which has no device, the snapshot of a volume: one commit, one suspend.

    Not zeroed again: that needs a device, and ``new_store`` has done it.  So nothing waits for
    udev, which is most of what the command costs (0.25 s instead of 0.87 s in the lab).
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
    """Ask from which fill on thin pools are extended, and refuse new volumes; takes no lock.

    A pool may have a ``profile`` of its own, or its group (lvmthin(7)).
    """
    profiled = ("--metadataprofile", profile) if profile else ()
    setting = "activation/thin_pool_autoextend_threshold"
    return ("lvm", "lvmconfig", *profiled, "--type", "full", setting)


def statuses(volumes: Iterable[LvRef]) -> Argv:
    """Ask the same of several; of two and more each line begins with a name (dmsetup(8))."""
    return ("dmsetup", "status", "--noflush", *map(mapped_name, volumes))


def target_status(volume: LvRef) -> Argv:
    """Ask the kernel how a volume's device is; touches no metadata and takes no lock of LVM's."""
    return ("dmsetup", "status", mapped_name(volume))


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


def rename(vg: str, old: str, new: str) -> Argv:
    """Give a volume another name; whoever holds it open keeps it (lvrename(8))."""
    return ("lvm", "lvrename", vg, old, new, *_BRISK)


def activate(volumes: Iterable[LvRef]) -> Argv:
    """Make the devices of volumes appear, and wait for them."""
    return ("lvm", "lvchange", "--activate", "y", "--ignoreactivationskip", *map(str, volumes))


def deactivate(volumes: Iterable[LvRef]) -> Argv:
    """Take the devices of volumes away."""
    return ("lvm", "lvchange", "--activate", "n", *map(str, volumes))


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


def untag(volume: LvRef, tags_: Iterable[str]) -> Argv:
    """Take our tags off a volume that has these, and is somebody's now."""
    return retag([volume], add=(), remove=sorted(filter(is_ours, tags_)))


def not_at_boot(volumes: Iterable[LvRef]) -> Argv:
    """Have LVM not activate volumes of itself; may be done again (lvm(8), AUTOACTIVATION)."""
    return ("lvm", "lvchange", "--setautoactivation", "n", *map(str, volumes))


def skip_activation(volumes: Iterable[LvRef]) -> Argv:
    """Have LVM activate volumes only for who says so each time; may be done again (lvchange(8))."""
    return ("lvm", "lvchange", "--setactivationskip", "y", *map(str, volumes))


def remove_set(vg: str, set_: str, roles: Iterable[Role]) -> Argv:
    """Remove what is ours, of this set and in one of these roles, and nothing else.

    The condition is checked by LVM under its own lock, so no volume that merely has the name of
    ours can be hit (lvmreport(7), SELECTION).
    """
    ours = f"lv_tags={{{TAG_OURS}}} && lv_tags={{{set_tag(set_)}}}"
    role = " || ".join(f"lv_tags={{{role_tag(role)}}}" for role in roles)
    return (*_REMOVE, "--select", f"{ours} && ({role})", vg)


def without_archive(command: Argv) -> Argv:
    """Have a command keep no copy of the group's metadata in files (vgcfgbackup(8))."""
    return (*command[:2], "--autobackup", "n", *command[2:])


def remove_volumes(vg: str, uuids: Iterable[LvUuid]) -> Argv:
    """Remove volumes of ours by uuid, wherever their names have gone."""
    which = " || ".join(f"lv_uuid={uuid}" for uuid in uuids)
    return (*_REMOVE, "--select", f"lv_tags={{{TAG_OURS}}} && ({which})", vg)


def _added(tags_: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for tag in tags_ for word in ("--addtag", tag))
