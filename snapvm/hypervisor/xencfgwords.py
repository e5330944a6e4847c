"""Write values in xl's language (xl.cfg(5)), and refuse what cannot be told in it.

Each function raises ``DomainRefused``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from snapvm.hypervisor.xenconfig import Config
from snapvm.refusals import DomainRefused

_OFF_FIRST = (
    "shut it off first (xl shutdown): snapvm then brings back its disks, and leaves it to you to "
    "start it from its own configuration file (xl create)"
)
_SWITCH = {"True": 1, "False": 0}
"""How libxl writes its three-valued booleans, and xl reads them."""


def require_nothing(domain: str, name: str, rest: Mapping[str, object]) -> None:
    """Refuse what is left of a place of this name; values are not told, as some are secret."""
    if rest:
        what = ", ".join(sorted(rest))
        raise DomainRefused(
            domain=domain,
            why=f"its configuration cannot be passed to `xl create`: {name} {what}".rstrip(),
            remedy=_OFF_FIRST,
        )


def number(value: Any) -> Any:
    """Turn a boolean of libxl into a number; leave any other value as it is."""
    return _SWITCH[value] if value in ("True", "False") else value


def quoted(domain: str, value: Any) -> str:
    """Quote a value in xl's language, with its escapes (libxlu_cfg.c, xlu__cfgl_dequote)."""
    text = str(value)
    if not text.isprintable():
        why = f"{text!r} cannot be passed to `xl create`"
        raise DomainRefused(domain=domain, why=why, remedy=_OFF_FIRST)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def listed(domain: str, word: str, values: Iterable[object]) -> str:
    """Return the line that sets a word to a list."""
    return f"{word} = [{', '.join(quoted(domain, value) for value in values)}]"


def taken_switches(
    domain: str, name: str, place: Config, words: Mapping[str, str]
) -> Iterator[str]:
    """Take what is on or off out of a place of this name, and yield the lines that tell it."""
    for key in [key for key in words if key in place]:
        value = place.pop(key)
        if value not in ("True", "False"):
            require_nothing(domain, name, {key: value})
        yield f"{words[key]} = {_SWITCH[value]}"


def taken_values(domain: str, name: str, place: Config, words: Mapping[str, str]) -> Iterator[str]:
    """Take texts and numbers out of a place of this name, and yield the lines that tell them."""
    for key in [key for key in words if key in place]:
        value = place.pop(key)
        if type(value) not in (str, int) or not str(value).isprintable():
            require_nothing(domain, name, {key: value})
        yield f"{words[key]} = {quoted(domain, value)}"
