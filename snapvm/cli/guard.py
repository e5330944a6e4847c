"""What a guard does, and a host whose domains are guarded: see ``snapvm.guard``."""

from __future__ import annotations

import syslog
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from snapvm import repair
from snapvm.cli import wiring
from snapvm.cli.session import Session
from snapvm.errors import Locked, SnapvmError
from snapvm.guard import Post, standing_by
from snapvm.host import Host
from snapvm.model import DomainUuid
from snapvm.settings import Settings

LOCK_SECONDS = 5.0
"""The dead process's lock goes a moment before or after its end of the pipe."""


@contextmanager
def guarded_host(session: Session) -> Iterator[Host]:
    """Yield what ``wiring.open_host`` does, with a guard for the domain of the command.

    The guard is made before anything is opened.  Raises ``HostLacks``.
    """
    settings = session.settings()
    with standing_by(partial(stand, settings)) as guard:
        yield wiring.open_host(settings, session, guard.watching)


def stand(settings: Settings, post: Post) -> None:
    """Stand watch until dismissed; act when the pipe ends without that."""
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
        _act(host, *domain)


def _act(host: Host, uuid: DomainUuid, name: str) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while not _repaired(host, uuid, name) and time.monotonic() < deadline:
        time.sleep(0.05)


def _repaired(host: Host, uuid: DomainUuid, name: str) -> bool:
    """Repair, and tell the system's log; a lock that is held belongs to one who repairs first."""
    try:
        with host.catalog.locked(uuid, name):
            for done in repair.finish_pending(host, uuid, name):
                syslog.syslog(syslog.LOG_WARNING, f"snapvm died: {done}")
    except Locked:
        return False
    except SnapvmError as error:
        syslog.syslog(syslog.LOG_ERR, f"snapvm died, and {error}; {error.hint()}")
    return True
