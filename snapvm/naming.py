"""How snapshots are named and referred to: ids, ``dom@id``, set digits, names of volumes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import chain, count

from snapvm.errors import AmbiguousSnapshot, BadName, UnknownSnapshot
from snapvm.model import SnapshotId

LATEST = "latest"
UNDO = "undo-"
"""The beginning of the ids of undo records, which keep what was current before a rollback."""
_STAMP = "%Y%m%dT%H%M%SZ"
_STAMPED = re.compile(r"(?P<stamp>\d{8}T\d{6}Z)(-\d+)?\Z", re.ASCII)
"""A stamp, and what ``free_id`` puts behind it."""
RESERVED = frozenset({"current", LATEST})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]{0,63}\Z")
_NAMES = (
    "a name is 1 to 64 of A-Z a-z 0-9 + . - and starts with a letter or digit, as in before-upgrade"
)
_SET = re.compile(r"[0-9a-f]{12}\Z")
_LVM_NAME = re.compile(r"(?!-|\.\.?\Z)[A-Za-z0-9+_.-]{1,127}\Z")
_LVM_UUID = re.compile(r"[A-Za-z0-9]{6}(-[A-Za-z0-9]{4}){5}-[A-Za-z0-9]{6}\Z")

DM_NAME_LIMIT = 127
"""DM_NAME_LEN is 128 with the final NUL (linux/dm-ioctl.h); LVM doubles each hyphen there."""
_LAYER_ROOM = len("-tpool--")
"""Room for what LVM puts behind the names of the devices below a volume; -tpool is the longest."""


def check_name(name: str) -> SnapshotId:
    """Return a user's ``--name`` as an id; raise ``BadName`` when it cannot be one.

    A name may not look like the id of an undo record, because of a damaged record nothing but its
    id is known.  Nor may it look like the id of a snapshot without a name: a record that is made
    anew from such an id would count as one without a name, which `prune` may delete.
    """
    if name.casefold() in RESERVED:
        raise BadName(text=name, why="this word is reserved", remedy=_NAMES)
    if is_undo(name):
        why = "names like this are for the disks that a rollback has replaced"
        raise BadName(text=name, why=why, remedy=_NAMES)
    if moment(name) is not None:
        why = "names like this are for snapshots without a name"
        raise BadName(
            text=name, why=why, remedy=f"leave --name out, or put a word before it; {_NAMES}"
        )
    if not _ID.match(name):
        raise BadName(text=name, why="no snapshot can have this name", remedy=_NAMES)
    return SnapshotId(name)


def is_id(text: str) -> bool:
    """Tell whether a folder's name can be that of a record."""
    return _ID.match(text) is not None


def is_undo(id_: str) -> bool:
    """Tell by an id alone whether it is that of an undo record.

    A user's ``--name`` may begin with ``undo-`` too, but no time follows then.
    """
    return id_.startswith(UNDO) and moment(id_.removeprefix(UNDO)) is not None


def is_set(text: str) -> bool:
    """Tell whether a text can be the twelve digits that name a set in LVM tags."""
    return _SET.match(text) is not None


def is_lvm_name(text: str) -> bool:
    """Tell whether LVM could have a group or a volume of this name (lvm(8), VALID NAMES)."""
    return _LVM_NAME.match(text) is not None


def is_lvm_uuid(text: str) -> bool:
    """Tell whether a text has the form of a volume's or a group's uuid, as lvs(8) prints it."""
    return _LVM_UUID.match(text) is not None


def new_set() -> str:
    """Return twelve hexadecimal digits that nobody has used, by which LVM tags name a snapshot."""
    # Not secrets.token_hex: the same bytes, but it imports OpenSSL, 5 ms of every command.
    return os.urandom(6).hex()


def stamp(now: datetime) -> str:
    """Return the UTC stamp that is the id of a snapshot without a name: 20261122T201755Z."""
    return now.astimezone(UTC).strftime(_STAMP)


def moment(id_: str) -> datetime | None:
    """Return the time that ``stamp`` made an id of, or None for an id that is a name."""
    found = _STAMPED.match(id_)
    if found is None:
        return None
    try:
        return datetime.strptime(found["stamp"], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


def free_id(wanted: str, is_taken: Callable[[str], bool]) -> SnapshotId:
    """Return ``wanted``, or with -2, -3 … behind it: two takes may fall into one second."""
    numbered = (f"{wanted}-{number}" for number in count(2))
    return SnapshotId(next(id_ for id_ in chain([wanted], numbered) if not is_taken(id_)))


def split_reference(text: str) -> tuple[str, str]:
    """Split ``dom@id``; a domain's name may hold an @, an id may not.

    Raises ``BadName`` when there is no @, no domain, or no id that can be one.
    """
    domain, at, id_ = text.rpartition("@")
    if not at or not domain:
        raise BadName(text=text, why="it does not say which snapshot of which domain")
    if id_.casefold() != LATEST and not _ID.match(id_):
        raise BadName(text=text, why=f"{id_!r} is no snapshot id")
    return domain, id_


def choose(domain: str, wanted: str, ids: Sequence[SnapshotId]) -> SnapshotId:
    """Return the id, among those of a domain, that is ``wanted`` or begins with it.

    Raises ``UnknownSnapshot`` or ``AmbiguousSnapshot``.
    """
    if wanted in ids:
        return SnapshotId(wanted)
    fitting = tuple(id_ for id_ in ids if id_.startswith(wanted))
    if len(fitting) > 1:
        raise AmbiguousSnapshot(domain=domain, prefix=wanted, ids=fitting)
    if not fitting:
        raise UnknownSnapshot(domain=domain, id=wanted)
    return fitting[0]


def snapshot_lv(origin_lv: str, id_: str, set_: str, vg: str, number: int) -> str:
    """Name the snapshot of a volume: readable where LVM's limit allows, else by the set.

    ``number`` is the disk's among those of its domain.  The origin's name stands first, so that no
    user's id can make an illegal prefix such as ``snapshot`` or ``pvmove`` (lvm(8), VALID NAMES).
    """
    return _derived(origin_lv, id_, f"{set_}s{number}", vg)


def clone_lv(origin_lv: str, set_: str, vg: str, number: int) -> str:
    """Name the clone that a rollback is about to put in a volume's place.

    Its short name is as long as that of ``snapshot_lv``: what can be taken can be rolled back.
    """
    return _derived(origin_lv, f"roll.{set_}", f"{set_}r{number}", vg)


def fits(vg: str, lv: str) -> bool:
    """Tell whether device-mapper can have a volume of this name, and the devices below it."""
    mapped = f"{vg}-{lv}".replace("-", "--")
    return len(mapped) + _LAYER_ROOM <= DM_NAME_LIMIT


def _derived(origin_lv: str, suffix: str, short: str, vg: str) -> str:
    """Put ``suffix`` behind a volume's name; if that is too long, cut it and put ``short`` there.

    What is cut off may be all that tells two disks apart, so ``short`` has to tell them apart.
    """
    name = f"{origin_lv}.{suffix}"
    if fits(vg, name):
        return name
    stem = origin_lv
    while stem and not fits(vg, f"{stem}.{short}"):
        stem = stem[:-1]
    return f"{stem}.{short}"
