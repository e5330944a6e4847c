"""The xl that looks after a domain, held for as long as the domain has suspended itself.

The xl that has started a domain stays behind, to start it again when the guest reboots and to clear
it away when it powers itself off.  Before Xen 4.20 such an xl ends as soon as it sees the domain
suspended (xen.git 6b8c85872e), even if the domain goes on a moment later.  What wakes the xl does
not say what has changed, so it asks Xen (libxl_domain.c, domain_death_xswatch_callback).  An xl
that is held (SIGSTOP) until the domain has gone on asks only then, and finds a domain that runs.

Such an xl is known by its log file (xl_utils.c, do_daemonize; libxl_utils.c, libxl_create_logfile),
which may have been rotated since.

A domain may have been started by libvirt instead, which keeps its XML beside libxl's own notes
(libvirt.git src/libxl/libxl_domain.c, libxlDomainStartNew).  One libvirtd serves all its domains,
and is not held.  libxl tells it only once that a domain has shut down; the suspend uses that up
(libxlDomainEventHandler ignores it), and libvirtd looks again only when it is started anew.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

STAYS_SINCE = (4, 20)
"""From this Xen on an xl does not end when its domain is suspended."""
PROCESSES = Path("/proc")
USERDATA = Path("/var/lib/xen")
_STDOUT = "fd/1"


def keepers(name: str, processes: Path = PROCESSES) -> tuple[int, ...]:
    """Return the processes that look after the domain of this name."""
    log = re.compile(rf"xl-{re.escape(name)}(--incoming)?\.log(\.\d+)?( \(deleted\))?")
    return tuple(pid for pid, path in _logs(processes) if log.fullmatch(os.path.basename(path)))


def is_libvirts(domid: int, uuid: str) -> bool:
    """Tell whether libvirt looks after a domain that runs."""
    return (USERDATA / f"userdata-d.{domid}.{uuid}.libvirt-xml").exists()


def _logs(processes: Path) -> Iterator[tuple[int, str]]:
    """Give each xl there is, and where its output goes."""
    for folder in processes.iterdir():
        with suppress(OSError):  # it has ended meanwhile
            if folder.name.isdigit() and (folder / "comm").read_bytes() == b"xl\n":
                yield int(folder.name), os.readlink(folder / _STDOUT)


def hold(pids: Iterable[int]) -> None:
    """Stop processes; harmless for what has ended."""
    _signal(pids, signal.SIGSTOP)


def let_go(pids: Iterable[int]) -> None:
    """Let processes go on; harmless for what was not held, or has ended."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
