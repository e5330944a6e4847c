"""Count and log the page-table entries that were zeroed in an image."""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from snapvm.memory.normalise import ForeignEntries, ForeignKind

log = logging.getLogger(__name__)

_LOGGED: Final = 64
"""How many entries are logged one by one."""
_NAMES: Final = {
    ForeignKind.UNKNOWN: "unknown",
    ForeignKind.OTHER_GRANT: "other domain's grant",
    ForeignKind.SHARED_INFO: "shared info",
    ForeignKind.MMIO: "device memory",
}


class ForeignLog:
    """How many entries were zeroed, and the first of them.

    Not all of them are kept: a guest may fill half of its memory with entries that map one page
    shared with Xen, and the log of those would take several times as much.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(len(ForeignKind), np.int64)
        self._first: list[ForeignEntries] = []

    def add(self, entries: ForeignEntries) -> None:
        """Count entries, and keep the first: nothing is logged while the guest stands still."""
        self._counts += np.bincount(entries["kind"], minlength=len(ForeignKind))
        room = _LOGGED - sum(map(len, self._first))
        if room > 0 and len(entries):
            self._first.append(entries[:room].copy())

    def write(self) -> None:
        """Log the entries that were kept."""
        for entry in (entry for entries in self._first for entry in entries):
            log.info(
                "zeroed entry %d of table %#x: machine frame %#x, flags %#x, %s",
                entry["index"],
                entry["table_pfn"],
                entry["mfn"],
                entry["flags"],
                _NAMES[ForeignKind(int(entry["kind"]))],
            )

    def counts(self) -> dict[str, int]:
        """Return how many entries there were of each kind of frame, by its name."""
        counts = self._counts.tolist()
        return {_NAMES[kind]: counts[kind] for kind in ForeignKind if counts[kind]}
