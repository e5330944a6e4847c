"""Values out of parsed JSON, where any field may be missing, or hold anything.

Each function returns the value of a field, or raises ``Wrong``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from snapvm import naming
from snapvm.model import LvUuid, VgUuid

_LIMIT_MS = 1e12
"""About thirty years; no time in a record comes near it."""

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class Wrong(ValueError):
    """What is wrong with a field; which file it is in is said by whoever reads that."""


class Unknown(Wrong):
    """A word that this snapvm does not know, and that a newer one may have written."""


def required(data: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Return a field of just this type: ``True`` is no number here."""
    value = data.get(key)
    if type(value) is not kind:
        raise Wrong(f"{key!r} is missing or not a {kind.__name__}")
    return value


def optional(data: Mapping[str, Any], key: str, *, default: T) -> T:
    """Return a field that older versions of snapvm did not write; it has the default's type."""
    return required(data, key, type(default)) if key in data else default


def one_of(data: Mapping[str, Any], key: str, kind: type[E]) -> E:
    """Return a field that is one of the values of an enum; raise ``Unknown`` for any other word."""
    text = required(data, key, str)
    try:
        return kind(text)
    except ValueError:
        raise Unknown(f"{key!r} is {text!r}, which this snapvm does not know") from None


def count(data: Mapping[str, Any], key: str) -> int:
    """Return a number of bytes, or of anything else that cannot be negative."""
    value = required(data, key, int)
    if not 0 <= value < 1 << 63:
        raise Wrong(f"{key!r} is out of range")
    return value


def milliseconds(data: Mapping[str, Any], key: str, *, may_be_negative: bool = False) -> float:
    """Return a time, whether it was written as a whole number or not."""
    value = data.get(key)
    least = -_LIMIT_MS if may_be_negative else 0.0
    if not isinstance(value, (int, float)) or not least <= value < _LIMIT_MS:
        raise Wrong(f"{key!r} is missing or not a time in milliseconds")
    return float(value)


def each(data: Mapping[str, Any], key: str, read: Callable[[dict[str, Any]], T]) -> tuple[T, ...]:
    """Return what ``read`` makes of each object in a list."""
    items = required(data, key, list)
    for item in items:
        if type(item) is not dict:
            raise Wrong(f"{key!r} holds something that is not an object")
    # A list first: a generator costs a `list` of ten thousand records 40 ms.
    return tuple([read(item) for item in items])


def texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of texts."""
    items = required(data, key, list)
    if not all(type(item) is str for item in items):
        raise Wrong(f"{key!r} holds something that is not a text")
    return tuple(items)


def set_name(data: Mapping[str, Any], key: str) -> str:
    """Return the name of a set of volumes, which becomes a part of LVM's tags."""
    name = required(data, key, str)
    if not naming.is_set(name):
        raise Wrong(f"{name!r} names no set")
    return name


def lvm_name(data: Mapping[str, Any], key: str) -> str:
    """Return the name of a volume or group, which becomes a word of LVM's command lines.

    One that LVM could take for something else, such as an option, is refused.
    """
    name = required(data, key, str)
    if not naming.is_lvm_name(name):
        raise Wrong(f"no volume can have the name {name!r}")
    return name


def lv_uuid(data: Mapping[str, Any], key: str, *, may_be_empty: bool = False) -> LvUuid:
    """Return the uuid of a volume."""
    uuid = required(data, key, str)
    if not naming.is_lvm_uuid(uuid) and not (may_be_empty and not uuid):
        raise Wrong(f"{uuid!r} is not the uuid of a volume")
    return LvUuid(uuid)


def vg_uuid(data: Mapping[str, Any], key: str) -> VgUuid:
    """Return the uuid of a group; empty where an older snapvm did not write it."""
    uuid = optional(data, key, default="")
    if uuid and not naming.is_lvm_uuid(uuid):
        raise Wrong(f"{uuid!r} is not the uuid of a volume group")
    return VgUuid(uuid)
