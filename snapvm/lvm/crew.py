"""Several waiting lvms that share the work in several groups, in the window.

Commands on one group exclude each other by its lock, yet two lvms are quicker than one: while one
holds the lock, the other scans the devices and parses the metadata.  In the lab, 8 thin snapshots
by two took 0.82 of the time that one needed; a third gained nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Event
from typing import TypeVar

from snapvm.lvm.warm import WarmLvm

LVMS_OF_A_GROUP = 2

Crews = Mapping[str, Sequence[WarmLvm]]
"""By group: the lvms that wait for it."""

T = TypeVar("T")


def needed(groups: Iterable[str]) -> tuple[str, ...]:
    """Return the group of each lvm that is to wait, of the group of each piece of work."""
    return tuple(
        vg for vg, pieces in Counter(groups).items() for _ in range(min(pieces, LVMS_OF_A_GROUP))
    )


def shared(
    crews: Crews, work: Iterable[tuple[str, T]], do: Callable[[WarmLvm, T], None]
) -> tuple[Callable[[], None], ...]:
    """Return what each lvm has to do, each to be called in a thread of its own.

    ``work`` is pieces with their groups.  No piece is begun after one has failed; whatever ``do``
    raises is raised.
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

    def job(lvm: WarmLvm, pieces: SimpleQueue[T]) -> Callable[[], None]:
        return lambda: share(lvm, pieces)

    return tuple(job(lvm, waiting[vg]) for vg in waiting for lvm in crews[vg])
