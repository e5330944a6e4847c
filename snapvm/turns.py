"""Whose turn it is in a volume group, so that no domain stands still while others work in it.

LVM does one thing at a time in a group, whoever asks.  Of thirty takes that begin together each
would wait in its pause for the snapshots of the others, and for the stores that those make for
theirs; and any of them for a removal, which takes minutes where LVM discards what it removes.  So
whoever does one of these on this host waits for its turn first, while its domain runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from snapvm import locking
from snapvm.clock import Deadline
from snapvm.errors import Locked
from snapvm.failures import StorageFailed
from snapvm.refusals import NotAllowed

LIMIT_SECONDS: Final = 120.0
"""How long it is waited for.  It is a courtesy: without it LVM's own lock keeps the order."""

log = logging.getLogger(__name__)


@contextmanager
def taken(run_dir: Path, groups: Iterable[str]) -> Iterator[None]:
    """Have the turn in volume groups for the block; when it does not come, do without.

    Who waits for it is first in a queue of one, where a `prune` has to come after each deletion.
    """
    limit = Deadline(LIMIT_SECONDS)

    def held(what: str, vg: str) -> AbstractContextManager[None]:
        file = run_dir / f"{vg}.{what}.lock"
        return locking.locked(file, vg, wait_seconds=limit.left_seconds)

    with ExitStack() as stack:
        for vg in sorted(set(groups)):  # in one order, so that no two wait for each other
            try:
                with held("queue", vg):
                    stack.enter_context(held("group", vg))
            except (Locked, StorageFailed, NotAllowed) as failure:
                log.info("its turn in %s is not waited for any longer: %s", vg, failure)
        yield
