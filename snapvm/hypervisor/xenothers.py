"""Find out whether somebody else saves or migrates a domain at the moment.

xl and libvirt both have a process of libxl's own do that (xen.git
tools/libs/light/libxl_save_callout.c, run_helper).  What Xen notes of a guest's writes is there
only once: each saver forgets what it has read, and whoever ends first switches it off.  So two at
once, or in turns, lose pages without noticing (xen.git xen/arch/x86/mm/paging.c).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapvm.hypervisor import xenkeeper
from snapvm.refusals import DomainRefused

_MODE: Final = b"--save-domain"
_MODE_AT, _DOMID_AT = 1, 4


def are_saving(domid: int) -> bool:
    """Tell whether somebody else saves or migrates a domain; raise ``XenFailed``."""
    return any(_saves(folder, domid) for folder in xenkeeper.folders_of(xenkeeper.PROCESSES))


def require_none(name: str, domid: int) -> None:
    """Raise ``DomainRefused`` when somebody else saves or migrates a domain."""
    if are_saving(domid):
        raise DomainRefused(
            domain=name,
            why="it is being saved or migrated at the moment (libxl-save-helper)",
            remedy="wait until that has ended",
        )


def _saves(folder: Path, domid: int) -> bool:
    """Tell whether a process is a saver of this domain; anybody may name one like that."""
    with suppress(OSError):  # it has ended meanwhile
        words = (folder / "cmdline").read_bytes().split(b"\0")
        if len(words) > _DOMID_AT and words[_MODE_AT] == _MODE:
            is_its = words[_DOMID_AT] == str(domid).encode()
            return is_its and xenkeeper.owner(folder) == os.getuid()
    return False
