"""What other domains of a libvirt have upon a device: it must not become another below them.

Such as the clones of a golden image, each an overlay on its volume, or one whose memory libvirt
keeps for its next start.  That they are off, and nobody uses the volume, makes it no better.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from snapvm.hypervisor import domainxml, libvirtdrives, overlays
from snapvm.hypervisor.base import Reliance
from snapvm.hypervisor.domainxml import Drive
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link, spoken
from snapvm.model import Domain
from snapvm.refusals import DomainRefused

_XML_INACTIVE = 2


def relying(link: Link, domain: Domain) -> Iterator[Reliance]:
    """Yield what every other domain relies on, and this one by its pools' volumes.

    Raises ``DomainRefused``.
    """
    try:
        with spoken():
            handles = link.connection.listAllDomains()
    except LibvirtFailed as failure:
        why = f"libvirt does not say which domains there are besides ({failure})"
        raise DomainRefused(domain=domain.name, why=why) from failure
    for handle in handles:
        # One that has gone meanwhile relies on nothing.
        with suppress(LibvirtFailed):
            yield from _of(link, handle, domain)


def _of(link: Link, handle: Any, domain: Domain) -> list[Reliance]:
    with spoken():
        is_itself = handle.UUIDString() == domain.uuid
        name, is_active = handle.name(), bool(handle.isActive())
        definitions = [handle.XMLDesc(0)]
        if is_active and handle.isPersistent():
            definitions.append(handle.XMLDesc(_XML_INACTIVE))
        is_saved = not is_active and bool(handle.hasManagedSaveImage(0))
    found: dict[Reliance, None] = {}
    for drive in (each for text in definitions for each in domainxml.drives_of(text)):
        # Its own overlays that are no volumes of a pool are seen in its definition.
        is_seen = is_itself and drive.type != "volume"
        image = None if is_seen else _image(link, drive)
        if image is None:
            continue
        for base in overlays.below(drive, image):
            found[_overlay(name, base.target, base.device)] = None
        if is_saved and not is_itself and not drive.is_removable:
            found[_saved(name, drive.target, image)] = None
    return list(found)


def _image(link: Link, drive: Drive) -> Path | None:
    """Return where a drive has what it is; None when that is not on this host, or not known."""
    if drive.type != "volume":
        return Path(drive.source) if drive.type in ("file", "block") and drive.source else None
    try:
        return libvirtdrives.path_of_volume(link, drive.pool, drive.source)
    except LibvirtFailed:
        return None


def _overlay(domain: str, target: str, base: Path) -> Reliance:
    name = shlex.quote(domain)
    return Reliance(
        domain=domain,
        target=target,
        device=base,
        tie="is an overlay on",
        why="what the overlay holds are changes of that volume, and of no other",
        remedy=f"have it hold everything, while that domain runs: virsh blockpull {name} {target} "
        f"--wait; or give it up, and take it out of that domain: virsh edit {name}",
    )


def _saved(domain: str, target: str, device: Path) -> Reliance:
    name = shlex.quote(domain)
    return Reliance(
        domain=domain,
        target=target,
        device=device,
        tie="is",
        why="libvirt keeps the memory of that domain for its next start (managed save), and it "
        "goes with this disk as it is now",
        remedy=f"`virsh managedsave-remove {name}` throws it away",
    )
