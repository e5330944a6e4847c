"""Decide from its definition and from libvirt whether a libvirt domain can be captured."""

from __future__ import annotations

import shlex
from typing import Any

from snapvm.hypervisor import domainxml, libvirtimages, libvirtversions, memfd
from snapvm.hypervisor.libvirtlink import Link, spoken
from snapvm.hypervisor.pause import refuse_busy
from snapvm.imageformats import ZSTD_SINCE
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused
from snapvm.release import release

_CONFIDENTIAL = frozenset({"sev", "sev-snp", "tdx"})
"""A guest of IBM's Secure Execution (s390-pv) may run without it; if not, QEMU refuses."""


def require(link: Link, domain: Domain) -> None:
    """Raise ``DomainRefused`` for a domain whose disks cannot be captured now."""
    if not domain.state.has_memory and domain.state is not DomainState.SHUTOFF:
        raise DomainRefused(
            domain=domain.name,
            why=f"it is {domain.state}",
            remedy=_until_capturable(domain),
        )
    handle = link.domain(domain.uuid)
    if domain.state.has_memory:
        refuse_busy(domain, handle)
    else:
        libvirtimages.refuse_saved(domain, handle, "and would not be captured")


def _until_capturable(domain: Domain) -> str:
    """Say what to do about a domain that neither runs, nor is paused, nor is shut off."""
    name = shlex.quote(domain.name)
    if domain.state is DomainState.SUSPENDED:
        return f"wake it first: virsh dompmwakeup {name}"
    if domain.state is DomainState.CRASHED:
        return (
            f"boot it first (virsh reset {name}; virsh resume {name}); `virsh dump --memory-only "
            f"{name} FILE` keeps what is in its memory now"
        )
    return "a domain is captured while it runs, is paused or is shut off"


def require_memory(link: Link, domain: Domain, *, is_compressed: bool) -> None:
    """Raise ``DomainRefused`` for a domain whose memory cannot be captured, or not as asked for."""
    devices = domainxml.passthrough_devices(domain.definition)
    if devices:
        raise DomainRefused(
            domain=domain.name,
            why=f"it has {devices[0]}, whose state cannot be captured",
            remedy="detach it, or take the disks alone with --disk-only",
        )
    _refuse_confidential(domain)
    _refuse_unsaved(link, domain)
    memfd.require_room(domain)
    if is_compressed:
        _require_zstd(link.connection, domain)


def _refuse_confidential(domain: Domain) -> None:
    """Raise ``DomainRefused`` for a domain whose memory QEMU cannot read.

    QEMU itself refuses to save some of them, and for others writes an image without their pages.
    """
    security = domainxml.parse(domain.definition).find("./launchSecurity")
    kind = "" if security is None else security.get("type", "")
    if kind in _CONFIDENTIAL:
        raise DomainRefused(
            domain=domain.name,
            why=f"it keeps its memory from this host (launchSecurity {kind})",
            remedy="shut it off, or take the disks alone with --disk-only",
        )


def _refuse_unsaved(link: Link, domain: Domain) -> None:
    """Raise ``DomainRefused`` for a domain with a device that its QEMU does not save."""
    found = tuple(domainxml.unsaved_devices(domain.definition))
    qemu = release(libvirtversions.of(link, domain).get("qemu", "")) if found else ()
    for what, since in found:
        if qemu and qemu < since:
            raise DomainRefused(
                domain=domain.name,
                why=f"it has {what}, which QEMU does not save",
                remedy="use another kind of it, or none (virsh edit "
                f"{shlex.quote(domain.name)}), or take the disks alone with --disk-only",
            )


def _require_zstd(connection: Any, domain: Domain) -> None:
    """Raise ``DomainRefused`` for a libvirt that may not restore what zstd has compressed."""
    with spoken():
        if libvirtversions.release_of(connection) < ZSTD_SINCE:
            raise DomainRefused(
                domain=domain.name,
                why="this libvirt may be unable to read images compressed by zstd",
                remedy="leave --compress out, and `compress` in the settings",
            )
