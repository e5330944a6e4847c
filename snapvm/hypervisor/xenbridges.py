"""Whether the bridges are there that a domain's network interfaces are going to be put on.

Xen's script looks for them when the domain that was there has been ended (xen.git
tools/hotplug/Linux/vif-bridge), and where it finds none the new one is ended, too.
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
"""Who serves an interface, where it is not this domain."""


def require(domain: str, config: Config) -> None:
    """Raise ``DomainRefused`` for the first that is not there."""
    for nic in config.get("nics", []):
        name = str(nic.get("bridge", ""))
        is_ours = os.path.basename(str(nic.get("script", ""))) == _SCRIPT
        if name and is_ours and not any(map(nic.get, _OTHERS)) and not _is_there(name):
            raise DomainRefused(
                domain=domain,
                why=f"it would not start: the bridge {quoted(name)} of its network interface "
                f"{nic.get('mac', '?')} is not there",
                remedy="make one of that name; `ip link show type bridge` tells which there are",
            )


def _is_there(name: str) -> bool:
    """Look for it as the script does, by any of its names."""
    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):  # no interface can be called so
        return False
    return True
