"""Check that no other Xen domain writes to a domain's disks, which could not be captured then.

Two domains may have the same disk: Xen's script checks for that (xen.git tools/hotplug/Linux/block,
check_sharing), but is not used when QEMU serves the disk, or with the mode ``w!``.
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
    # A stub domain with QEMU has the disks of the domain for which it works.
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
    """Return the number of a drive's device; empty when it is not known."""
    if vbd.backend_domid != "0":
        return ""
    is_open = vbd.backend == "vbd" and vbd.kind == "phy"
    return vbd.physical.lower() if is_open and vbd.physical else xendisks.number_of(vbd.device)
