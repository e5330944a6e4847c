"""Stop the xl that looks after a domain, for as long as the domain has suspended itself.

The xl that has started a domain keeps running, to start it again when the guest reboots and to
clean up when it powers off.  Before Xen 4.20 that xl ends as soon as it sees the domain suspended
(xen.git 6b8c85872e), even if the domain goes on a moment later.  The event that wakes the xl does
not say what has changed, so the xl asks Xen (libxl_domain.c, domain_death_xswatch_callback).  An xl
that is stopped (SIGSTOP) meanwhile asks only afterwards, and finds a domain that runs.

Such an xl is found by its log file (xl_utils.c, do_daemonize; libxl_utils.c, libxl_create_logfile),
which may have been rotated.  An xl in the foreground (``xl create -F``, as in a unit of systemd,
which may shut the guest down when its xl ends) has no log file, and is found by the name in its
arguments or its configuration file.  If the domain was renamed since, neither has its name.

A domain may have been started by libvirt instead, which keeps its XML beside libxl's own notes
(libvirt.git src/libxl/libxl_domain.c, libxlDomainStartNew).  One libvirtd serves all its domains,
and cannot be stopped.  libxl reports only once that a domain has shut down, and the suspend is that
report (libxlDomainEventHandler ignores it); libvirtd looks again only when it is restarted.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from snapvm.hypervisor.xenlib import XenFailed

STAYS_SINCE = (4, 20)
"""From this version of Xen on, xl does not end when its domain is suspended."""
PROCESSES = Path("/proc")
USERDATA = Path("/var/lib/xen")
_STDOUT = "fd/1"
_WAITS = re.compile(rb"\(domid (\d{1,5})\) to die")
_UID = re.compile(r"^Uid:\t(\d+)", re.MULTILINE)
_NAME = re.compile(r"""^[ \t]*name\s*=\s*(["'])(.*?)\1""", re.MULTILINE)


def keepers(name: str, processes: Path = PROCESSES) -> tuple[int, ...]:
    """Return the processes that look after the domain of this name; raise ``XenFailed``."""
    log = re.compile(rf"xl-{re.escape(name)}(--incoming)?\.log(\.\d+)?( \(deleted\))?")
    return tuple(
        int(folder.name) for folder in folders_of(processes) if _looks_after(folder, name, log)
    )


def folders_of(processes: Path) -> tuple[Path, ...]:
    """Return the folder of each process of this host; raise ``XenFailed``."""
    try:
        return tuple(folder for folder in processes.iterdir() if folder.name.isdigit())
    except OSError as failure:
        why = failure.strerror or str(failure)
        raise XenFailed(f"looking for the processes that look after domains: {why}") from failure


def starters(name: str, alive: Collection[int]) -> tuple[int, ...]:
    """Return the processes that may be about to make a domain of this name, which is off.

    The xl of one that reboots sleeps in between (xl_vmcontrol.c, create_domain).  One whose domain
    is ``alive``, and was renamed, says so in its log; and one that is stopped makes none.
    """
    pids = keepers(name, PROCESSES)
    return tuple(pid for pid in pids if not _is_at_rest(PROCESSES / str(pid), alive))


def _is_at_rest(folder: Path, alive: Collection[int]) -> bool:
    with suppress(OSError):
        if (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:1] == ["T"]:
            return True
        log = folder / _STDOUT
        domids = _WAITS.findall(log.read_bytes()) if log.is_file() else []
        return bool(domids) and int(domids[-1]) in alive
    return True  # it has ended meanwhile


def is_libvirts(domid: int, uuid: str) -> bool:
    """Tell whether libvirt looks after a domain that runs."""
    return (USERDATA / f"userdata-d.{domid}.{uuid}.libvirt-xml").exists()


def _looks_after(folder: Path, name: str, log: re.Pattern[str]) -> bool:
    """Tell whether a process is an xl of ours with this log, or that was told to create ``name``.

    Anybody may call a process xl, and have it name any file to read here.
    """
    with suppress(OSError):  # it has ended meanwhile
        if (folder / "comm").read_bytes() == b"xl\n" and owner(folder) == os.getuid():
            output = os.path.basename(os.readlink(folder / _STDOUT))
            return log.fullmatch(output) is not None or name == _told(folder)
    return False


def owner(folder: Path) -> int | None:
    """Return whose a process is; the owner of its folder may be another (proc(5), dumpable)."""
    found = _UID.search((folder / "status").read_text(errors="replace"))
    return None if found is None else int(found[1])


def _told(folder: Path) -> str | None:
    """Return the name of the domain that an xl was told to create; None when that is not known.

    Its arguments may be a file and settings, of which the last one counts (xl(1), create).
    """
    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    if "create" not in words:
        return None
    settings = []
    for word in words[words.index("create") + 1 :]:
        path = folder / "cwd" / word
        is_file = not word.startswith("-") and os.path.isfile(path)  # a setting may be a long word
        settings.append(path.read_text(errors="replace") if is_file else word)
    found = _NAME.findall("\n".join(settings))
    return found[-1][1] if found else None


def hold(pids: Iterable[int]) -> None:
    """Stop processes; harmless for a process that has ended."""
    _signal(pids, signal.SIGSTOP)


def let_go(pids: Iterable[int]) -> None:
    """Let processes go on; harmless for a process that was not stopped, or has ended."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
