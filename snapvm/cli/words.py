"""Format values for people: sizes, times, ages, and text from outside made harmless."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from unicodedata import east_asian_width

from snapvm.model import moment

_FEW_WORDS = 8
"""A version with more is one of a processor, and ``--json`` has all of it."""
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_AGES = (
    (60, 1, "second"),
    (3600, 60, "minute"),
    (86400, 3600, "hour"),
    (86400 * 60, 86400, "day"),
    (86400 * 730, 86400 * 30.44, "month"),
)


def plain(text: str) -> str:
    """Return ``text`` on one line without anything a terminal would obey.

    Notes, names and what other programs said come from outside; a control character, a line end
    or a change of writing direction in them is shown as its escape.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def size(count_bytes: int) -> str:
    """Return a number of bytes with two to four digits: ``512 B``, ``1.5 GiB``, ``131 MiB``."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    value = float(count_bytes)
    for unit in _UNITS:
        value /= 1024
        if value < 1023.5 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def milliseconds(value_ms: float) -> str:
    """Return a duration given in milliseconds: ``0.4 ms``, ``84 ms``, ``3.2 s``, ``2 min 5 s``."""
    if value_ms < 9.95:
        return f"{value_ms:.1f} ms"
    if value_ms < 999.5:
        return f"{value_ms:.0f} ms"
    return seconds(value_ms / 1000)


def seconds(value: float) -> str:
    """Return a duration given in seconds: ``3.2 s``, ``45 s``, ``2 min 5 s``, ``1 h 12 min``."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def local_time(created: str, *, precise: bool = False) -> str:
    """Return a record's time of creation on this host's clock, to the minute or the second."""
    when = moment(created)
    if when is None:
        return plain(created)
    try:
        return when.astimezone().strftime("%Y-%m-%d %H:%M:%S" if precise else "%Y-%m-%d %H:%M")
    except (OverflowError, OSError, ValueError):  # the last: a TZ of a day or more
        return plain(created)


def age(created: str, now: datetime) -> str:
    """Return how long ago a record was made: ``3 minutes ago``."""
    when = moment(created)
    if when is None:
        return "at an unknown time"
    passed = (now - when).total_seconds()
    if passed < 0:
        return "in the future"
    if passed < 5:
        return "just now"
    for limit, unit_seconds, unit in _AGES:
        if passed < limit:
            return f"{counted(int(passed / unit_seconds), unit)} ago"
    return f"{counted(int(passed / (86400 * 365.25)), 'year')} ago"


def counted(number: int, noun: str) -> str:
    """Return ``1 disk``, ``2 disks``, ``no disks``."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def width(text: str) -> int:
    """Return how many columns a terminal gives to a printable text."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def shortened(text: str, columns: int) -> str:
    """Return ``text``, cut and marked with dots when it is wider than ``columns``."""
    if width(text) <= columns:
        return text
    kept = text[: max(columns - 3, 0)]
    while kept and width(kept) > columns - 3:
        kept = kept[:-1]
    return f"{kept}..."


def versions(told: Mapping[str, str]) -> str:
    """Return names and versions, without the dozens of features that a processor has."""
    return ", ".join(f"{name} {_brief(version)}" for name, version in told.items())


def _brief(version: str) -> str:
    words = version.split()
    if len(words) <= _FEW_WORDS:
        return version
    return f"{words[0]} with {len(words) - 1} features"
