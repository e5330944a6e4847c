"""Check that this host can have enough memory for a domain that is to be restored.

xl would notice only when the running domain and its memory are gone (xen.git
tools/xl/xl_vmcontrol.c, freemem; tools/libs/guest/xg_sr_restore.c, populate_pfns).  So the most
that there can be is computed before: free memory, what the running domain gives back, and, where xl
takes memory from the control domain ("autoballoon", xl.conf(5)), all that libxl would take.  What
is refused here could not be restored; what is not refused may still fail.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from snapvm.errors import quoted
from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.process import Runner
from snapvm.refusals import HostLacks

XL_CONF = Path("/etc/xen/xl.conf")
_MIB: Final = 1 << 20
_CONTROL_DOMID: Final = 0
_LEAST_BYTES: Final = 128 * _MIB
"""How much memory libxl leaves the control domain (LIBXL_MIN_DOM0_MEM)."""
_AUTOBALLOON: Final = re.compile(r"^\s*autoballoon\s*=\s*[\"']?(\w+)", re.MULTILINE)
_SIZE: Final = r"-?[0-9]+[bBkKmMgGtT]?"
_FIXED: Final = re.compile(
    rf"(^| )dom0_mem=((|min:|max:)({_SIZE}|({_SIZE}\+)?[0-9]{{1,2}}%),?)+($| )"
)
"""Matches a command line of Xen that fixes the control domain's size: xl then takes none of its
memory (xl.c, auto_autoballoon)."""

log = logging.getLogger(__name__)


def require(
    runner: Runner, control: XenControl, name: str, *, needed_bytes: int, given_back_bytes: int
) -> None:
    """Raise ``HostLacks`` when there cannot be memory for a domain that needs so much."""
    try:
        told = _told(runner.run(["xl", "info"]).stdout)
        free_bytes = (int(told["free_memory"]) + 1) * _MIB  # xl rounds down
    except (CommandFailed, CommandTimedOut, KeyError, ValueError) as why:
        log.debug("xl does not tell how much memory is free: %r", why)
        return
    taken_bytes = _takeable_bytes(control) if _takes(told.get("xen_commandline", "")) else 0
    if needed_bytes <= free_bytes + given_back_bytes + taken_bytes:
        return
    sources = [f"{free_bytes // _MIB} MiB free"]
    if given_back_bytes:
        sources.append(f"{given_back_bytes // _MIB} MiB given back by what runs")
    if taken_bytes:
        sources.append(f"{taken_bytes // _MIB} MiB of the control domain at the most")
    needed = -(-needed_bytes // _MIB)
    raise HostLacks(
        what=f"the memory that {quoted(name)} had: {needed} MiB, but {', '.join(sources)}",
        remedy="give other domains less (`xl mem-set`), or shut some down; `xl info free_memory` "
        "tells what is free",
    )


def _told(text: str) -> dict[str, str]:
    """Return the values in the output of ``xl info``, by name."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _takes(command_line: str) -> bool:
    """Tell whether xl takes memory from the control domain to start a domain."""
    try:
        words = _AUTOBALLOON.findall(XL_CONF.read_text(errors="replace"))
    except OSError:
        words = []
    word = words[-1] if words else "auto"
    if word in ("on", "1", "off", "0"):
        return word in ("on", "1")
    return _FIXED.search(command_line) is None


def _takeable_bytes(control: XenControl) -> int:
    info = control.info(_CONTROL_DOMID)
    return 0 if info is None else max(0, info.memory_bytes - _LEAST_BYTES)
