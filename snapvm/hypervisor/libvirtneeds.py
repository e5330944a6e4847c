"""What libvirt needs besides files to start a domain: an emulator, its machine type, networks.

It finds out when the domain that was there has been ended.  Reads only.
"""

from __future__ import annotations

import shlex
from typing import Any

from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, spoken
from snapvm.refusals import DomainRefused

_NOT_SUCH_AN_EMULATOR = frozenset({8, 38, 67})
"""VIR_ERR_INVALID_ARG (no such machine type, no KVM), VIR_ERR_SYSTEM_ERROR (no such file) and
VIR_ERR_CONFIG_UNSUPPORTED (libvirt/virterror.h).  Any other may be a libvirt that cannot say."""
_NO_NETWORK = 43
"""VIR_ERR_NO_NETWORK (libvirt/virterror.h)."""


def require(connection: Any, domain: str, definition: str, remedy: str) -> None:
    """Raise ``DomainRefused`` when libvirt has not what a definition needs.

    ``remedy`` is how another emulator or network is named in it.
    """
    _require_emulator(connection, domain, definition, remedy)
    sources = domainxml.parse(definition).iterfind("./devices/interface[@type='network']/source")
    for name in dict.fromkeys(source.get("network", "") for source in sources):
        if name:
            _require_network(connection, domain, name, remedy)


def _require_emulator(connection: Any, domain: str, definition: str, remedy: str) -> None:
    root = domainxml.parse(definition)
    kind = root.find("./os/type")
    if kind is None:
        return
    emulator = root.findtext("./devices/emulator", "").strip()
    try:
        with spoken():
            connection.getDomainCapabilities(
                emulator or None, kind.get("arch"), kind.get("machine"), root.get("type"), 0
            )
    except LibvirtFailed as failure:
        if failure.code not in _NOT_SUCH_AN_EMULATOR:
            return
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: {failure}",
            remedy="install a QEMU that has its machine type "
            f"({kind.get('machine', 'none is named')}) where it was, or {remedy}",
        ) from failure


def _require_network(connection: Any, domain: str, network: str, remedy: str) -> None:
    start = f"`virsh net-start {shlex.quote(network)}`"
    try:
        with spoken():
            is_active = bool(connection.networkLookupByName(network).isActive())
    except LibvirtFailed as failure:
        if failure.code != _NO_NETWORK:
            return
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: its network {network} is not there",
            remedy=f"define it (`virsh net-define FILE`) and start it ({start}), or {remedy}",
        ) from failure
    if not is_active:
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: its network {network} is not active",
            remedy=f"start it: {start}",
        )
