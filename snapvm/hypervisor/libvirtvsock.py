"""Check that no other running domain has a domain's fixed vsock address (CID).

A clone has the fixed address of its original.  libvirt would notice only at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from snapvm.errors import quoted
from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken
from snapvm.model import Domain
from snapvm.refusals import DomainRefused

_ACTIVE = 1
"""VIR_CONNECT_LIST_DOMAINS_ACTIVE."""


def require(connection: Any, domain: Domain, definition: str, remedy: str) -> None:
    """Raise ``DomainRefused`` when another running domain has the address of a definition."""
    fixed = set(_addresses(definition, "[@auto='no']"))
    if not fixed:
        return
    for name, taken in _others(connection, domain):
        if fixed & taken:
            raise DomainRefused(
                domain=domain.name,
                why=f"it would not start: {quoted(name)} runs with the vsock address (CID) "
                f"{min(fixed & taken)} that it has to have",
                remedy=f"end that domain, or {remedy}",
            )


def _others(connection: Any, domain: Domain) -> Iterator[tuple[str, set[str]]]:
    """Yield name and addresses of the other running domains; none if libvirt does not answer."""
    handles: list[Any] = []
    with suppress(LibvirtFailed), spoken():
        handles = connection.listAllDomains(_ACTIVE)
    for handle in handles:
        taken: set[str] = set()
        with suppress(LibvirtFailed), spoken():  # a domain may have gone meanwhile
            if handle.UUIDString() != domain.uuid:
                taken = set(_addresses(handle.XMLDesc(0)))
        if taken:
            yield handle.name(), taken


def _addresses(definition: str, which: str = "") -> Iterator[str]:
    for cid in domainxml.parse(definition).iterfind(f"./devices/vsock/cid{which}"):
        if address := cid.get("address", ""):
            yield address
