"""Check for what libvirt needs besides files to start a domain: emulator, networks, pools, filters.

libvirt would notice only after the running domain has been ended.  Nothing is changed here.
"""

from __future__ import annotations

import shlex
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, denial, probed, spoken
from snapvm.refusals import DomainRefused

_NOT_SUCH_AN_EMULATOR = frozenset({8, 38, 67})
"""VIR_ERR_INVALID_ARG (no such machine type, no KVM), VIR_ERR_SYSTEM_ERROR (no such file) and
VIR_ERR_CONFIG_UNSUPPORTED (libvirt/virterror.h).  Any other may be a libvirt that cannot say."""
_NO_SUCH_VOLUME, _NO_SUCH_FILTER = 50, 62
"""VIR_ERR_NO_STORAGE_VOL and VIR_ERR_NO_NWFILTER (libvirt/virterror.h)."""
HOOKS = (Path("/etc/libvirt/hooks/qemu"), Path("/etc/libvirt/hooks/qemu.d"))
"""libvirt runs these before it starts a domain (docs/hooks); they may make a bridge or provide huge
pages."""
_HOST_DEVICES = (("bridge", "bridge"), ("direct", "dev"))
"""The kinds of interfaces that need a network device of the host, and the attribute that names it.
"""


def require(connection: Any, domain: str, definition: str, remedy: str) -> str:
    """Raise ``DomainRefused`` when libvirt lacks something that a definition needs.

    ``remedy`` says how to name another emulator, network, bridge, pool or filter in it.  Returns
    what libvirt says that its emulator can do (docs/formatdomaincaps), which is long; nothing where
    it does not say.
    """
    capabilities = _require_emulator(connection, domain, definition, remedy)
    _require_active(connection, domain, _NETWORK, _networks(definition), remedy)
    _require_active(connection, domain, _POOL, (pool for pool, _ in _volumes(definition)), remedy)
    _require_volumes(connection, domain, _volumes(definition), remedy)
    _require_filters(connection, domain, definition, remedy)
    _require_host_devices(domain, _host_devices(definition), remedy)
    return capabilities


def has_hook() -> bool:
    """Tell whether a hook of libvirt may make what is missing now."""
    return any(hook.exists() for hook in HOOKS)


def _require_emulator(connection: Any, domain: str, definition: str, remedy: str) -> str:
    root = domainxml.parse(definition)
    kind = root.find("./os/type")
    if kind is None:
        return ""
    emulator = root.findtext("./devices/emulator", "").strip()
    machine = kind.get("machine")
    wanted = (emulator or None, kind.get("arch"), machine, root.get("type"), 0)
    said = []
    unknown = denial(
        lambda: said.append(probed(partial(connection.getDomainCapabilities, *wanted))),
        *_NOT_SUCH_AN_EMULATOR,
    )
    if unknown:
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: {unknown}",
            remedy="install a QEMU that has its machine type "
            f"({machine or 'none is named'}) where it was, or, as its <emulator>, {remedy}",
        ) from unknown
    return "".join(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of objects that libvirt knows by name, and that can be active or not."""

    what: str
    virsh: str
    """The beginning of virsh's commands for it."""
    lookup: str
    no_such: int
    """libvirt's error code for an unknown name (libvirt/virterror.h)."""


_NETWORK = _Kind(what="network", virsh="net", lookup="networkLookupByName", no_such=43)
_POOL = _Kind(what="storage pool", virsh="pool", lookup="storagePoolLookupByName", no_such=49)


def _require_active(
    connection: Any, domain: str, kind: _Kind, names: Iterable[str], remedy: str
) -> None:
    for name in dict.fromkeys(names):
        start = f"`virsh {kind.virsh}-start {shlex.quote(name)}`"
        try:
            with spoken():
                is_active = bool(getattr(connection, kind.lookup)(name).isActive())
        except LibvirtFailed as failure:
            if failure.code != kind.no_such:
                continue
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: its {kind.what} {name} is not there",
                remedy=f"define it (`virsh {kind.virsh}-define FILE`) and start it ({start}), "
                f"or {remedy}",
            ) from failure
        if not is_active:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: its {kind.what} {name} is not active",
                remedy=f"start it: {start}",
            )


def _networks(definition: str) -> Iterator[str]:
    return (name for _, name in _connections(definition, "network", "network") if name)


def _connections(definition: str, kind: str, named: str) -> Iterator[tuple[ET.Element, str]]:
    """Yield the interfaces of a kind, each with the name of what it is connected to."""
    for interface in domainxml.parse(definition).iterfind(f"./devices/interface[@type='{kind}']"):
        source = interface.find("source")
        yield interface, "" if source is None else source.get(named, "")


def _host_devices(definition: str) -> Iterator[str]:
    """Yield the network devices that must exist; nothing where a hook may make them."""
    if has_hook():
        return
    for kind, named in _HOST_DEVICES:
        for interface, name in _connections(definition, kind, named):
            # Open vSwitch does not always have a device with the name of the bridge.
            if name and interface.find("virtualport") is None:
                yield name


def _require_host_devices(domain: str, names: Iterable[str], remedy: str) -> None:
    for name in names:
        try:
            socket.if_nametoindex(name)
        except OSError:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: this host has no network device {name} for it",
                remedy=f"make it (`ip link` shows what there is), or {remedy}",
            ) from None


def _volumes(definition: str) -> Iterator[tuple[str, str]]:
    """Yield pool and name of each volume that must exist when the domain starts."""
    for drive in domainxml.drives_of(definition):
        if drive.type == "volume" and drive.pool and not drive.startup:
            yield drive.pool, drive.source


def _require_volumes(
    connection: Any, domain: str, volumes: Iterable[tuple[str, str]], remedy: str
) -> None:
    for pool, volume in volumes:
        missing = denial(partial(_volume, connection, pool, volume), _NO_SUCH_VOLUME)
        if missing:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: its storage pool {pool} has no volume {volume}",
                remedy=f"refresh the pool (`virsh pool-refresh {shlex.quote(pool)}`), or {remedy}",
            ) from missing


def _volume(connection: Any, pool: str, volume: str) -> Any:
    return connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)


def _require_filters(connection: Any, domain: str, definition: str, remedy: str) -> None:
    root = domainxml.parse(definition)
    filters = (each.get("filter", "") for each in root.iterfind("./devices/interface/filterref"))
    for name in dict.fromkeys(filters):
        missing = denial(partial(connection.nwfilterLookupByName, name), _NO_SUCH_FILTER)
        if missing:
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: its network filter {name} is not there",
                remedy=f"define it (`virsh nwfilter-define FILE`), or {remedy}",
            ) from missing
