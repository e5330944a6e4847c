"""Whether a domain has its disks to itself: what another writes meanwhile is of no one instant.

Nothing keeps two domains from having one disk: Xen's script looks who else has it (xen.git
tools/hotplug/Linux/block, check_sharing), but is not asked where QEMU serves it, or by ``w!``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Final

from snapvm.hypervisor import xendisks
from snapvm.hypervisor.xendisks import Vbd
from snapvm.hypervisor.xenstore import XenStore
from snapvm.refusals import DiskRefused

_DOMAINS: Final = "/local/domain"


def require_alone(
    store: XenStore, domain: str, domid: int, vbds: Iterable[Vbd], domids: Iterable[int]
) -> None:
    """Raise ``DiskRefused`` for the first disk of a domain that another of ``domids`` writes."""
    own = {number: vbd for vbd in vbds if vbd.is_captured and (number := _number(vbd))}
    # QEMU in a domain of its own has the disks of the domain that it is for.
    helper = store.read(f"{_DOMAINS}/{domid}/image/device-model-domid")
    for other in domids:
        if other == domid or str(other) == helper:
            continue
        for vbd in xendisks.read_vbds(store, other):
            shared = own.get(_number(vbd)) if vbd.is_captured else None
            if shared is not None:
                name = store.read(f"{_DOMAINS}/{other}/name") or str(other)
                raise DiskRefused(
                    domain=domain,
                    target=shared.target,
                    why=f"it is disk {vbd.target} of {name}, which runs and may write to it, too",
                    remedy=f"take it away there: xl block-detach {shlex.quote(name)} {vbd.target}",
                )


def _number(vbd: Vbd) -> str:
    """Return the number of the device that is behind a drive; empty when this is not known."""
    if vbd.backend_domid != "0":
        return ""
    is_open = vbd.backend == "vbd" and vbd.kind == "phy"
    return vbd.physical.lower() if is_open and vbd.physical else xendisks.number_of(vbd.device)
