"""Find the devices on which other libvirt domains rely, so that a rollback does not change them.

Such domains are the clones of a golden image, each an overlay on its volume, or a domain whose
memory libvirt keeps for its next start.  They rely on the device even while they are off.  One that
is on relies on each of its disks, too: another may have been defined with the same disk.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapvm.errors import quoted
from snapvm.hypervisor import domainxml, libvirtdrives, overlays
from snapvm.hypervisor.base import Reliance
from snapvm.hypervisor.domainxml import Drive
from snapvm.hypervisor.libvirtlink import XML_INACTIVE, LibvirtFailed, Link, spoken
from snapvm.model import Domain
from snapvm.refusals import DomainRefused

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """A disk of a domain, and the path of its image."""

    domain: str
    target: str
    image: Path
    format: str
    is_saved: bool
    """Whether libvirt keeps memory that fits only this disk as it is."""
    is_in_use: bool
    """Whether another domain than the one that goes back is on, and has it."""


def relying(link: Link, domain: Domain) -> Iterator[Reliance]:
    """Yield the devices on which other domains rely, and this one through volumes of its pools.

    An image that does not answer, perhaps because its server is down, is logged, and so is a domain
    of which libvirt does not say what it has.  Raises ``DomainRefused``.
    """
    try:
        with spoken():
            handles = link.connection.listAllDomains()
    except LibvirtFailed as failure:
        why = f"libvirt does not say which other domains there are ({failure})"
        raise DomainRefused(domain=domain.name, why=why) from failure
    held: dict[_Held, None] = {}
    for handle in handles:
        try:
            held |= dict.fromkeys(_held_by(link, handle, domain))
        except LibvirtFailed as failure:
            if not failure.is_unknown_domain:  # one that has gone meanwhile relies on nothing
                log.warning(
                    "libvirt does not say what disks %s has (%s): it is unknown whether it relies "
                    "on one that is rolled back",
                    quoted(handle.name()),
                    failure,
                )
    chains = overlays.chains((each.image, each.format) for each in held)
    for each in held:
        chain = chains.get(each.image)
        if chain is None:
            log.warning(
                "%s, disk %s of %s, does not answer: it is unknown whether it is an overlay on a "
                "disk that is rolled back",
                each.image,
                each.target,
                each.domain,
            )
            continue
        yield from (_overlay(each, base) for base in chain)
        if each.is_saved:
            yield _saved(each)
        if each.is_in_use:
            yield _in_use(each)


def _held_by(link: Link, handle: Any, domain: Domain) -> list[_Held]:
    with spoken():
        is_itself = handle.UUIDString() == domain.uuid
        name, is_active = handle.name(), bool(handle.isActive())
        forms = [(handle.XMLDesc(0), is_active and not is_itself)]
        if is_active and handle.isPersistent():
            forms.append((handle.XMLDesc(XML_INACTIVE), False))
        is_saved = not (is_active or is_itself) and bool(handle.hasManagedSaveImage(0))
    held: dict[tuple[str, Path, str], _Held] = {}
    for text, is_in_use in forms:
        for drive in domainxml.drives_of(text):
            # Of the domain itself only volumes of a pool count: the caller sees its other overlays.
            if not overlays.is_kept(drive) or (is_itself and drive.type != "volume"):
                continue
            image = _image(link, drive)
            if image is not None:
                each = _Held(
                    domain=name,
                    target=drive.target,
                    image=image,
                    format=drive.format,
                    is_saved=is_saved,
                    is_in_use=is_in_use,
                )
                held.setdefault((drive.target, image, drive.format), each)
    return list(held.values())


def _image(link: Link, drive: Drive) -> Path | None:
    """Return the path of a drive's image; None when that is not known, or not on this host."""
    if drive.type != "volume":
        return Path(drive.source) if drive.type in ("file", "block") else None
    try:
        return libvirtdrives.path_of_volume(link, drive.pool, drive.source)
    except LibvirtFailed:
        return None


def _overlay(held: _Held, base: Path) -> Reliance:
    name = shlex.quote(held.domain)
    return Reliance(
        domain=held.domain,
        target=held.target,
        device=base,
        tie="is an overlay on",
        why="what the overlay holds are changes to that volume, and to no other",
        remedy="make it independent, while that domain runs: virsh blockpull "
        f"{name} {held.target} --wait; or discard it, and remove it from that domain: virsh edit "
        f"{name}",
    )


def _saved(held: _Held) -> Reliance:
    return Reliance(
        domain=held.domain,
        target=held.target,
        device=held.image,
        tie="is",
        why="libvirt keeps the memory of that domain for its next start (managed save), and it "
        "goes with this disk as it is now",
        remedy=f"`virsh managedsave-remove {shlex.quote(held.domain)}` discards it",
    )


def _in_use(held: _Held) -> Reliance:
    name = shlex.quote(held.domain)
    return Reliance(
        domain=held.domain,
        target=held.target,
        device=held.image,
        tie="is",
        why="that domain is on, and would not notice that its disk is rolled back",
        remedy=f"shut it off, or detach the disk from it: virsh detach-disk {name} "
        f"{shlex.quote(held.target)}",
    )
