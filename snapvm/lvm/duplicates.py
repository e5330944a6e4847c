"""Groups with a physical volume that LVM sees on several devices, and that it does not change then.

That may be a LUN whose paths no multipathd joins, a copy that a SAN has made of one, or a disk of a
guest that is in a snapshot of it too.  lvs warns of the devices, but does not say of which group
they are; whatever changes that group fails (lvm2, lvmcache.c, _warn_unused_duplicates, and
metadata.c, vg_write).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.lvm import argv, reading
from snapvm.lvm.report import Report
from snapvm.process import Runner

_WARNING = re.compile(r"Not using device (\S+) for PV")
_LIMIT_SECONDS = 120.0

Devices = frozenset[str]


class Reader:
    """Reads what lvs reports; LVM is asked for the groups of such devices once, when needed."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[Devices, Mapping[str, str]] = {frozenset(): {}}

    def parse(self, text: str) -> Report:
        """Return a report as ``reading.parse`` does, with ``Report.doubled``."""
        return reading.parse(text, partial(self._doubled, frozenset(_WARNING.findall(text))))

    def _doubled(self, devices: Devices) -> Mapping[str, str]:
        if devices not in self._known:
            self._known[devices] = self._ask_for_groups()
        return self._known[devices]

    def _ask_for_groups(self) -> Mapping[str, str]:
        """Return a device by group; nothing where LVM changes such groups, or does not say."""
        try:
            if reading.is_on(self._ask(reading.DUPLICATES_ALLOWED_ARGV)):
                return {}
            return reading.parse_duplicates(self._ask(reading.DUPLICATES_ARGV))
        except (CommandFailed, CommandTimedOut):
            return {}

    def _ask(self, command: argv.Argv) -> str:
        return self._runner.run(command, timeout_seconds=_LIMIT_SECONDS).stdout
