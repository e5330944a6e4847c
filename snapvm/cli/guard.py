"""What the guard of a command does when the command dies; see ``snapvm.guard``."""

from __future__ import annotations

import syslog
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from snapvm import repair, standing
from snapvm.attention import StuckPaused
from snapvm.cli import failures, wiring
from snapvm.cli.session import Session
from snapvm.cli.words import plain
from snapvm.clock import Deadline
from snapvm.errors import ExitStatus, Locked, SnapvmError
from snapvm.guard import Post, standing_by
from snapvm.host import Host
from snapvm.hypervisor.detect import load_driver
from snapvm.model import DomainUuid
from snapvm.settings import Settings

PATIENCE_SECONDS = 5.0
"""How long the guard tries to repair: the dead command's lock may be freed after its pipe ends."""
STANDING_PATIENCE_SECONDS = 300.0
"""How long it tries while the domain stands still, or nobody says whether it does: a libvirtd that
is being restarted, or hangs and is about to be."""
_PAUSE_SECONDS = 0.05
_LONG_PAUSE_SECONDS = 1.0
"""Between attempts there has to be time for others that want the lock."""


@contextmanager
def guarded_host(session: Session) -> Iterator[Host]:
    """Open the host as ``wiring.open_host`` does, with a guard for the domain of the command.

    The guard is made before anything is opened, but has what both of them import.  Raises
    ``HostLacks``.
    """
    settings = session.settings()
    load_driver()
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
    soon, late = Deadline(PATIENCE_SECONDS), Deadline(STANDING_PATIENCE_SECONDS)
    while (failure := _failure_of_repair(host, uuid, name)) is not None:
        is_stuck = isinstance(failure, StuckPaused)
        is_final = failure.exit_status is ExitStatus.ATTENTION and not is_stuck
        is_over = not (soon.left_seconds or (late.left_seconds and _may_stand_still(host, name)))
        if is_final or is_over:
            _tell(failure, host.settings)
            return
        time.sleep(_PAUSE_SECONDS if soon.left_seconds else _LONG_PAUSE_SECONDS)


def _may_stand_still(host: Host, name: str) -> bool:
    """Tell whether the domain stands still, or its hypervisor does not say."""
    try:
        domain = standing.find(host, name)
    except SnapvmError:
        return True
    return domain is not None and domain.state in standing.STATES


def _tell(failure: SnapvmError, settings: Settings) -> None:
    if not isinstance(failure, Locked):
        session = Session(used_state_dir=settings.state_dir)
        hint = failures.whole_hint(failure, session.unusual_state_dir)
        why = plain(f"{failure}; {hint}")
        syslog.syslog(syslog.LOG_ERR, f"snapvm died, and {why}")


def _failure_of_repair(host: Host, uuid: DomainUuid, name: str) -> SnapvmError | None:
    try:
        with host.catalog.locked(uuid, name, waits=False):  # see PATIENCE_SECONDS
            for done in repair.finish_pending(host, uuid, name):
                syslog.syslog(syslog.LOG_WARNING, f"snapvm died: {plain(done)}")
    except SnapvmError as error:
        return error
    return None
