"""Choose the driver for the hypervisor of this host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from snapvm.hypervisor.base import Hypervisor
from snapvm.process import Runner
from snapvm.settings import Settings

_XEN_CAPABILITIES = Path("/proc/xen/capabilities")


def _is_xen_host() -> bool:
    """Tell whether this is a Xen control domain (xenfs: "control_d")."""
    try:
        return "control_d" in _XEN_CAPABILITIES.read_text()
    except OSError:
        return False


def load_driver() -> Callable[[Settings, Runner], Hypervisor]:
    """Import the driver of this host and return what opens it; contacts nobody."""
    if _is_xen_host():
        # heavy: a fifth of what a command imports, and a host needs only one of the two drivers
        from snapvm.hypervisor import xen

        return xen.open_hypervisor
    # heavy: for the same reason
    from snapvm.hypervisor import libvirt

    return lambda settings, _runner: libvirt.open_hypervisor(settings)


def open_driver(settings: Settings, runner: Runner) -> Hypervisor:
    """Return the driver of this host; raise ``HostLacks`` when no driver works."""
    return load_driver()(settings, runner)
