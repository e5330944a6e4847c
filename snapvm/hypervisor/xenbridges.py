"""Check that the bridges exist to which a Xen domain's network interfaces will be attached.

Xen's script looks for them only after the running domain has been ended (xen.git
tools/hotplug/Linux/vif-bridge), and when one is missing the new domain is ended, too.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from snapvm.errors import quoted
from snapvm.hypervisor.xenconfig import Config
from snapvm.refusals import DomainRefused

_SCRIPT: Final = "vif-bridge"
_OTHERS: Final = ("backend_domid", "backend_domname")
"""These are set when another domain than the control domain serves an interface."""


def require(domain: str, config: Config) -> None:
    """Raise ``DomainRefused`` for the first missing bridge."""
    for nic in config.get("nics", []):
        name = str(nic.get("bridge", ""))
        is_ours = os.path.basename(str(nic.get("script", ""))) == _SCRIPT
        if name and is_ours and not any(map(nic.get, _OTHERS)) and not _is_there(name):
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: the bridge {quoted(name)} of its network interface "
                f"{nic.get('mac', '?')} is not there",
                remedy="make it; `ip link show type bridge` shows the existing ones",
            )


def _is_there(name: str) -> bool:
    """Look for a bridge as the script does, also by its alternative names."""
    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):  # ValueError: an impossible name
        return False
    return True
