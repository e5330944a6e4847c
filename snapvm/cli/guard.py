"""What the guard of a command does when the command dies; see ``snapvm.guard``."""

from __future__ import annotations

import syslog
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from snapvm import repair
from snapvm.cli import wiring
from snapvm.cli.session import Session
from snapvm.cli.words import plain
from snapvm.clock import Deadline
from snapvm.errors import ExitStatus, Locked, SnapvmError
from snapvm.guard import Post, standing_by
from snapvm.host import Host
from snapvm.model import DomainUuid
from snapvm.settings import Settings

PATIENCE_SECONDS = 5.0
"""How long the guard tries to repair: the dead command's lock may be freed after its pipe ends."""
_PAUSE_SECONDS = 0.05


@contextmanager
def guarded_host(session: Session) -> Iterator[Host]:
    """Open the host as ``wiring.open_host`` does, with a guard for the domain of the command.

    The guard is made before anything is opened.  Raises ``HostLacks``.
    """
    settings = session.settings()
    with standing_by(partial(stand, settings)) as guard:
        yield wiring.open_host(settings, session, guard.watching)


def stand(settings: Settings, post: Post) -> None:
    """Stand watch until the command dismisses the guard; repair when the pipe ends before."""
    domain = post.domain()
    if domain is None:
        return
    try:
        host = wiring.open_host(settings)
    except SnapvmError as error:
        post.cannot(str(error))
        return
    post.ready()
    if not post.is_dismissed():
        _repair(host, *domain)


def _repair(host: Host, uuid: DomainUuid, name: str) -> None:
    """Repair, and tell the system's log; try again for a while when that fails.

    Another snapvm that holds the lock will repair.  And a program that the dead command had started
    may not have ended: a domain that is being destroyed is neither there nor off.
    """
    deadline = Deadline(PATIENCE_SECONDS)
    while (failure := _failure_of_repair(host, uuid, name)) is not None:
        if failure.exit_status is ExitStatus.ATTENTION or not deadline.left_seconds:
            if not isinstance(failure, Locked):
                why = plain(f"{failure}; {failure.hint()}")
                syslog.syslog(syslog.LOG_ERR, f"snapvm died, and {why}")
            return
        time.sleep(_PAUSE_SECONDS)


def _failure_of_repair(host: Host, uuid: DomainUuid, name: str) -> SnapvmError | None:
    try:
        with host.catalog.locked(uuid, name, waits=False):  # see PATIENCE_SECONDS
            for done in repair.finish_pending(host, uuid, name):
                syslog.syslog(syslog.LOG_WARNING, f"snapvm died: {plain(done)}")
    except SnapvmError as error:
        return error
    return None
