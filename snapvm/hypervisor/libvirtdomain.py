"""Read a libvirt domain, as it is now, into a ``Domain`` value."""

from __future__ import annotations

from typing import Any

from snapvm.hypervisor import domainxml, qemurun
from snapvm.hypervisor.libvirtlink import XML_SECURE, spoken
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind

_STATES = {
    1: DomainState.RUNNING,
    2: DomainState.RUNNING,  # VIR_DOMAIN_BLOCKED
    3: DomainState.PAUSED,
    5: DomainState.SHUTOFF,
    6: DomainState.CRASHED,
    7: DomainState.SUSPENDED,
}
"""virDomainState (libvirt/libvirt-domain.h); 0 and 4 are states in transition."""


def of(handle: Any) -> Domain:
    """Return the domain of a virDomain handle; raises libvirt's own exception."""
    info, definition = handle.info(), handle.XMLDesc(XML_SECURE)
    memory_kib = max(0, info[1] - domainxml.withheld_kib(definition))
    return Domain(
        name=handle.name(),
        uuid=DomainUuid(handle.UUIDString()),
        hypervisor=HypervisorKind.LIBVIRT,
        state=_STATES.get(info[0], DomainState.OTHER),
        memory_bytes=memory_kib * 1024,
        vcpus=info[3],
        definition=definition,
        run=qemurun.of(handle),
    )


def state_of(handle: Any) -> DomainState:
    """Return what the domain of a virDomain handle does now; raise ``LibvirtFailed``."""
    with spoken():
        return _STATES.get(handle.state()[0], DomainState.OTHER)
