"""Which run of a domain it is: told by its QEMU process.

libvirt's id does not tell it alone: it counts from 1 again when libvirt is started anew while no
domain runs, and an idle virtqemud ends by itself.  A process has its number and the time at which
it began, and no other has both before the next boot.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PID_FILES = Path("/run/libvirt/qemu")
"""Where the libvirt of the system has a file for each domain that runs, by its name (libvirt,
qemu_process.c, qemuProcessPrepareHost and qemuProcessReconnect)."""
PROC = Path("/proc")
_OFF = -1
"""The id of a domain that does not run (virDomainGetID)."""
_BEGAN = 22 - 3
"""Of a process's `stat`: field 22, in clock ticks since the boot; the third is the first behind the
name, which may have anything in it (proc(5))."""


def of(handle: Any) -> str | None:
    """Return what tells this run of a domain from every other of this boot; None when it is off.

    Where libvirt keeps its files elsewhere the id has to do.  Raises libvirt's own exception.
    """
    number = handle.ID()
    if number == _OFF:
        return None
    return _process(handle.name()) or f"id {number}"


def _process(name: str) -> str:
    """Return which process a domain is; empty when it cannot be told."""
    try:
        pid = int((PID_FILES / f"{name}.pid").read_text())
        stat = (PROC / f"{pid}/stat").read_text(errors="replace")
    except (OSError, ValueError):
        return ""
    return f"process {pid} since {stat.rpartition(')')[2].split()[_BEGAN]}"
