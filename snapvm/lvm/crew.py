"""Share the work of the pause among several waiting lvms.

Commands on one group exclude each other by its lock, but two lvms are still quicker than one: while
one holds the lock, the other scans devices and parses metadata.  In the lab two lvms made 8 thin
snapshots in 0.82 of the time of one; a third gained nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event
from typing import TypeVar

from snapvm.lvm.warm import WarmLvm

LVMS_OF_A_GROUP = 2

Crews = Mapping[str, Sequence[WarmLvm]]
"""The waiting lvms of each group."""

T = TypeVar("T")


def needed(groups: Iterable[str]) -> tuple[str, ...]:
    """Return a group for each lvm that is needed; ``groups`` has one for each piece of work."""
    return tuple(
        vg for vg, pieces in Counter(groups).items() for _ in range(min(pieces, LVMS_OF_A_GROUP))
    )


def shared(
    crews: Crews, work: Iterable[tuple[str, T]], do: Callable[[WarmLvm, T], None]
) -> tuple[Callable[[], None], ...]:
    """Return a function for each lvm, to be called in a thread of its own.

    ``work`` has pieces, each with its group, and ``do`` does one piece.  No piece is begun after
    one has failed; the function raises whatever ``do`` raises.
    """
    failed = Event()
    waiting: defaultdict[str, SimpleQueue[T]] = defaultdict(SimpleQueue)
    for vg, piece in work:
        waiting[vg].put(piece)

    def share(lvm: WarmLvm, pieces: SimpleQueue[T]) -> None:
        while not failed.is_set():
            try:
                piece = pieces.get_nowait()
            except Empty:
                return
            try:
                do(lvm, piece)
            except BaseException:
                failed.set()
                raise

    return tuple(partial(share, lvm, waiting[vg]) for vg in waiting for lvm in crews[vg])
