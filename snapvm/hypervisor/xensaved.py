"""Check that nobody keeps memory of a Xen domain that is off, for its next start.

It goes with the disks as they were when the domain was saved.  After a rollback of the disks that
start would restore it all the same, upon other disks than it knows.

xl keeps none by itself, but the script that saves all domains when the host goes down does (xen.git
tools/hotplug/Linux/xendomains.in), and so does libvirt, if it looks after Xen domains ("managed
save"; libvirt.git src/libxl/libxl_domain.c, libxlDomainManagedSavePath).  Both remove it when the
domain has been restored from it.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

from snapvm.errors import quoted
from snapvm.refusals import DomainRefused

XENDOMAINS: Final = Path("/var/lib/xen/save")
"""XENDOMAINS_SAVE in its settings, where nobody has changed it."""
LIBVIRT: Final = Path("/var/lib/libvirt/libxl/save")


def require_none(name: str) -> None:
    """Raise ``DomainRefused`` when memory of the domain, which is off, is kept."""
    path = XENDOMAINS / name
    if os.path.isfile(path):
        raise _refused(name, path, "the next start of xendomains", f"rm {shlex.quote(str(path))}")
    path = LIBVIRT / f"{name}.save"
    if os.path.isfile(path):
        remedy = f"virsh managedsave-remove {shlex.quote(name)}"
        raise _refused(name, path, "its next start by libvirt (managed save)", remedy)


def _refused(name: str, path: Path, start: str, remedy: str) -> DomainRefused:
    return DomainRefused(
        domain=name,
        why=f"its memory is kept for {start}, and goes with its disks as they are now "
        f"({quoted(str(path))})",
        remedy=f"let it be started from that first; or throw that memory away: {remedy}",
    )
