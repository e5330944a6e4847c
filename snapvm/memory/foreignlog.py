"""Count and log the page-table entries that were zeroed in an image."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from snapvm.memory.normalise import ForeignEntries, ForeignKind

log = logging.getLogger(__name__)

_LOGGED: Final = 64
_NAMES: Final = {
    ForeignKind.UNKNOWN: "unknown",
    ForeignKind.OWN_GRANT: "own grant",
    ForeignKind.OTHER_GRANT: "other domain's grant",
    ForeignKind.SHARED_INFO: "shared info",
    ForeignKind.MMIO: "device memory",
}


def count(logs: Iterable[ForeignEntries]) -> dict[str, int]:
    """Return how many entries were zeroed for each kind of frame; log the first of them."""
    counts: dict[str, int] = {}
    for number, entry in enumerate(entry for entries in logs for entry in entries):
        kind = _NAMES[ForeignKind(int(entry["kind"]))]
        counts[kind] = counts.get(kind, 0) + 1
        if number < _LOGGED:
            log.info(
                "zeroed entry %d of table %#x: machine frame %#x, flags %#x, %s",
                entry["index"],
                entry["table_pfn"],
                entry["mfn"],
                entry["flags"],
                kind,
            )
    return counts
