"""Which hypervisor of this host owns a domain."""

from __future__ import annotations

from pathlib import Path

from snapvm.errors import HostLacks
from snapvm.hypervisor import libvirt
from snapvm.hypervisor.base import Hypervisor
from snapvm.settings import Settings

XEN_CAPABILITIES = Path("/proc/xen/capabilities")


def is_xen_host(capabilities: Path = XEN_CAPABILITIES) -> bool:
    """Tell whether this is a Xen control domain (xenfs: "control_d")."""
    try:
        return "control_d" in capabilities.read_text()
    except OSError:
        return False


def open_driver(settings: Settings) -> Hypervisor:
    """Return the driver of this host; raise ``HostLacks`` when there is none that works."""
    if is_xen_host():
        raise HostLacks(
            what="an engine for Xen domains in this version of snapvm",
            remedy="this version captures libvirt/KVM domains; the Xen engine is in the making",
        )
    return libvirt.open_hypervisor(settings)
