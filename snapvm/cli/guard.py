"""The guard's own process: see ``snapvm.guard`` for what it is for."""

from __future__ import annotations

import os
import signal
import sys
import syslog
import time
from dataclasses import replace
from pathlib import Path

from snapvm import repair
from snapvm.cli import wiring
from snapvm.errors import Locked, SnapvmError
from snapvm.guard import BYE, DISMISS, READY
from snapvm.host import Host
from snapvm.model import DomainUuid
from snapvm.settings import Settings

LOCK_SECONDS = 5.0
"""The dead process's lock goes a moment before or after its end of the pipe."""


def main() -> None:
    """Stand watch until dismissed; act when the pipe ends without that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    state_dir, run_dir, uri, uuid, name = sys.argv[1:]
    settings = replace(
        Settings(), state_dir=Path(state_dir), run_dir=Path(run_dir), libvirt_uri=uri
    )
    try:
        host = wiring.open_host(settings)
    except SnapvmError as error:
        _say(f"cannot: {error}")
        return
    if not _is_dismissed():
        _act(host, DomainUuid(uuid), name)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _is_dismissed() -> bool:
    """Answer every order; tell whether one of them was to go, or the pipe just ended."""
    for line in sys.stdin:
        if line.strip() == DISMISS:
            _say(BYE)
            return True
        _say(READY)
    return False


def _act(host: Host, uuid: DomainUuid, name: str) -> None:
    # Whoever read what we say is dead, and writing to its pipe would end us.
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    syslog.openlog("snapvm-guard", syslog.LOG_PID, syslog.LOG_DAEMON)
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
