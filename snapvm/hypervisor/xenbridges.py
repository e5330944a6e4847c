"""Check that the bridges exist to which a Xen domain's network interfaces will be attached.

Xen's script looks for them only after the running domain has been ended (xen.git
tools/hotplug/Linux/vif-bridge), and when one is missing the new domain is ended, too.

What the configuration leaves open is not in libxl's JSON: neither the script nor, of an interface
that names none, the bridge (tools/libs/light/libxl_nic.c, libxl__device_nic_setdefault).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from snapvm.errors import quoted
from snapvm.hypervisor.xenconfig import Config
from snapvm.refusals import DomainRefused

INTERFACES: Final = Path("/sys/class/net")
_SCRIPT: Final = "vif-bridge"
_BRIDGE: Final = "xenbr0"
_OLD_STYLE: Final = "xenbr"
_OTHERS: Final = ("backend_domid", "backend_domname")
"""These are set when another domain than the control domain serves an interface."""


def require(domain: str, config: Config) -> None:
    """Raise ``DomainRefused`` for the first missing bridge."""
    for nic in config.get("nics", []):
        name = str(nic.get("bridge") or _BRIDGE)
        is_ours = os.path.basename(str(nic.get("script") or _SCRIPT)) == _SCRIPT
        if is_ours and not any(map(nic.get, _OTHERS)) and not _is_there(name):
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: the bridge {quoted(name)} of its network interface "
                f"{nic.get('mac', '?')} is not there",
                remedy="make it; `ip link show type bridge` shows the existing ones",
            )


def _is_there(name: str) -> bool:
    """Look for a bridge as the script does, also by its alternative names.

    For xenbr0 the script takes a bridge called eth0.
    """
    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: an impossible name
        number = name.removeprefix(_OLD_STYLE)
        return number != name and (INTERFACES / f"eth{number}" / "bridge").exists()
    return True
