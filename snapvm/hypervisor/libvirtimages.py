"""What libvirt would start a domain from: an image of ours, or one it has saved by itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken
from snapvm.model import Domain
from snapvm.refusals import DomainRefused


def check(connection: Any, domain: Domain, image: Path) -> None:
    """Let libvirt read an image's header; raise ``DomainRefused`` when it cannot."""
    try:
        with spoken():
            connection.saveImageGetXMLDesc(str(image), 0)
    except LibvirtFailed as failure:
        raise DomainRefused(
            domain=domain.name, why=f"libvirt cannot use the memory image: {failure}"
        ) from failure


def refuse_saved(domain: Domain, handle: Any, why: str) -> None:
    """Raise ``DomainRefused`` for a domain whose memory libvirt keeps for its next start.

    libvirt-guests saves domains so when the host goes down.  Such memory goes together with the
    disks as they are: started on any others, the guest spoils its file systems.
    """
    try:
        with spoken():
            is_saved = bool(handle.hasManagedSaveImage(0))
    except LibvirtFailed as failure:
        raise DomainRefused(domain=domain.name, why=str(failure)) from failure
    if is_saved:
        name = shlex.quote(domain.name)
        resume = "" if domain.state.has_memory else f"`virsh start {name}` goes on from it, "
        raise DomainRefused(
            domain=domain.name,
            why=f"libvirt keeps its memory for its next start (managed save), {why}",
            remedy=f"{resume}`virsh managedsave-remove {name}` throws it away",
        )
