"""A conversation with the fake lvm: what it is told line by line, and what it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.process import Completed
from tests.fakes.lvmwords import configured, parse

_MAX_ARGS = 64
"""From so many words on a line is refused (lvm2, tools/lvm.c: lvm_shell)."""


class Obeying(Protocol):
    """The lvm that is talked to, which does as it is told; see ``FakeLvm``."""

    conf: dict[str, str]
    has_stuck_daemon: bool
    is_echoing: bool
    hanging: list[str] | None

    def obey(self, argv: Sequence[str]) -> Completed: ...


class FakeConversation:
    """An lvm that takes orders on its standard input; see ``Conversation``."""

    def __init__(self, lvm: Obeying) -> None:
        self._lvm = lvm
        self._unheard: list[str] = []

    def ended(self, limit_seconds: float) -> bool:
        """Tell whether it did all it was told; see ``Conversation``."""
        return self._lvm.hanging is None

    def ask(
        self, line: str, ends: Callable[[str], bool], *, limit_seconds: float
    ) -> tuple[str, ...]:
        """Do each line; say what lvm says of a new volume, of a failure, and of its version."""
        if self._lvm.hanging is not None and line != "version":
            self._lvm.hanging += line.splitlines()[:1]
            raise CommandTimedOut(argv=("lvm", *line.split()), seconds=limit_seconds)
        for told in line.splitlines():
            order = re.split(r"(?<!\S)#", told)[0]  # a comment (lvm2, lvm_split)
            is_too_long = len(order.split()) >= _MAX_ARGS
            said = ["  Too many arguments, sorry."] if is_too_long else self._obey(order)
            self._unheard += said
            if self._lvm.has_stuck_daemon and self._notifies(order):
                break  # it does not come to the next line
        return self.listen(ends, limit_seconds=limit_seconds)

    def listen(self, ends: Callable[[str], bool], *, limit_seconds: float) -> tuple[str, ...]:
        """Return the lines up to the one that ends them; see ``Conversation``."""
        last = next((n for n, said in enumerate(self._unheard) if ends(said)), None)
        if last is None:
            raise CommandTimedOut(argv=("lvm",), seconds=limit_seconds)
        heard, self._unheard = self._unheard[: last + 1], self._unheard[last + 1 :]
        return tuple(heard)

    def _obey(self, order: str) -> list[str]:
        words = order.split()
        named = words[0] if self._lvm.conf.get("log/command_names") == "1" else ""
        said = self._said(words)
        if self._lvm.conf.get("report/output_format") == "json":
            # What would be said stands in the log then (lvm2, tools/reporter.c).
            said = [json.dumps({"log_message": line.strip()}) for line in said]
        echo = [f"lvm> \r<{order[-40:]}"] if self._lvm.is_echoing else []
        return [*echo, *(f"{named}{line}" for line in said)]

    def _notifies(self, order: str) -> bool:
        options, _ = parse(order.split()[1:])
        is_wanted = configured(options).get("global/notify_dbus") != "0"
        return order != "version" and is_wanted

    def _said(self, words: list[str]) -> list[str]:
        if words == ["version"]:
            return ["  LVM version:     0", "  Configuration:   a fake"]
        is_silent = self._lvm.conf.get("log/silent") == "1" and "--quiet" not in words
        try:
            self._lvm.obey(("lvm", *words))
        except (CommandFailed, StopIteration) as failure:
            known = failure.stderr if isinstance(failure, CommandFailed) else "Missing argument."
            return [f"  {known}"]
        if is_silent:
            return []
        words = [word for word in words if word != "--quiet"]
        if words[0] == "lvconvert":
            return [
                f"  Logical volume {words[-2].partition('/')[0]}/{words[-1]} converted to snapshot."
            ]
        if words[0] == "lvrename":
            return [f'  Renamed "{words[2]}" to "{words[3]}" in volume group "{words[1]}"']
        return [f'  Logical volume "{words[words.index("--name") + 1]}" created.']
