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
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapvm.errors import quoted
from snapvm.refusals import DomainRefused

XENDOMAINS: Final = Path("/var/lib/xen/save")
"""XENDOMAINS_SAVE in its settings, where nobody has changed it."""
SETTINGS: Final = (Path("/etc/default/xendomains"), Path("/etc/sysconfig/xendomains"))
"""They are shell; which of the two it is was chosen when Xen was built (m4/paths.m4)."""
_SAVE: Final = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?XENDOMAINS_SAVE=(["']?)(/[^\s"'$`;]*)\1""", re.MULTILINE
)
LIBVIRT: Final = Path("/var/lib/libvirt/libxl/save")


def require_none(name: str) -> None:
    """Raise ``DomainRefused`` when memory of the domain, which is off, is kept."""
    for path in (folder / name for folder in _folders()):
        if os.path.isfile(path):
            remedy = f"rm {shlex.quote(str(path))}"
            raise _refused(name, path, "the next start of xendomains", remedy)
    path = LIBVIRT / f"{name}.save"
    if os.path.isfile(path):
        remedy = f"virsh managedsave-remove {shlex.quote(name)}"
        raise _refused(name, path, "its next start by libvirt (managed save)", remedy)


def _folders() -> Iterator[Path]:
    """Yield where xendomains saves domains, or has saved them before its settings were changed."""
    yield XENDOMAINS
    for settings in SETTINGS:
        with suppress(OSError):  # there is only one of them
            for found in _SAVE.finditer(settings.read_text(errors="replace")):
                yield Path(found[2])


def _refused(name: str, path: Path, start: str, remedy: str) -> DomainRefused:
    return DomainRefused(
        domain=name,
        why=f"its memory is kept for {start}, and fits only its disks as they are now "
        f"({quoted(str(path))})",
        remedy=f"start it from that first, or discard that memory: {remedy}",
    )
