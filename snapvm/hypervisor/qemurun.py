"""Identify the present run of a libvirt domain, by its QEMU process.

libvirt's id is not enough: it counts from 1 again when libvirt is restarted while no domain runs,
and an idle virtqemud ends by itself.  But no two processes have both the same number and the same
start time before the next boot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PID_FILES = Path("/run/libvirt/qemu")
"""Where the system's libvirt has a pid file for each running domain, by its name (libvirt,
qemu_process.c, qemuProcessPrepareHost and qemuProcessReconnect)."""
PROC = Path("/proc")
_OFF = -1
"""The id of a domain that does not run (virDomainGetID)."""
_BEGAN = 22 - 3
"""The start time in a process's `stat` (proc(5)): field 22, counted from the field behind the name,
which is the third, because the name may contain anything."""


def of(handle: Any) -> str | None:
    """Return a text that identifies this run of a domain until the next boot; None when it is off.

    If there is no pid file it is made from libvirt's id.  Raises libvirt's own exception.
    """
    number = handle.ID()
    if number == _OFF:
        return None
    return _process(handle.name()) or f"id {number}"


def pid_of(name: str) -> int | None:
    """Return the number of a domain's process; None when there is no pid file of libvirt's."""
    try:
        return int((PID_FILES / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None


def _process(name: str) -> str:
    """Return a text that identifies a domain's process; empty when it is not found."""
    pid = pid_of(name)
    try:
        stat = (PROC / f"{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return f"process {pid} since {stat.rpartition(')')[2].split()[_BEGAN]}"
