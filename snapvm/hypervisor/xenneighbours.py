"""Check that no other Xen domain writes to a domain's disks, which could not be captured then.

Two domains may have the same disk: Xen's script checks for that (xen.git tools/hotplug/Linux/block,
check_sharing), but is not used when QEMU serves the disk, or with the mode ``w!``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from snapvm.hypervisor import answers, xendisks
from snapvm.hypervisor.xendisks import Vbd
from snapvm.hypervisor.xenstore import XenStore
from snapvm.refusals import DiskRefused

_DOMAINS: Final = "/local/domain"
_DEVICES: Final = Path("/dev")


def require_alone(
    store: XenStore, domain: str, domid: int, vbds: Iterable[Vbd], domids: Iterable[int]
) -> None:
    """Raise ``DiskRefused`` for the first disk of a domain that another of ``domids`` writes."""
    # A stub domain with QEMU has the disks of the domain for which it works.
    helper = store.read(f"{_DOMAINS}/{domid}/image/device-model-domid")
    mine = [vbd for vbd in vbds if vbd.is_captured]
    others = [
        (other, vbd)
        for other in domids
        if other != domid and str(other) != helper
        for vbd in xendisks.read_vbds(store, other)
        if vbd.is_captured and vbd.backend_domid == "0"
    ]
    numbers = _numbers(vbd for vbd in (*mine, *(vbd for _, vbd in others)))
    own = {number: vbd for vbd in mine if (number := _number(vbd, numbers))}
    for other, vbd in others:
        shared = own.get(_number(vbd, numbers))
        if shared is not None:
            name = store.read(f"{_DOMAINS}/{other}/name") or str(other)
            raise DiskRefused(
                domain=domain,
                target=shared.target,
                why=f"it is also disk {vbd.target} of {name}, which runs and may write to it",
                remedy=f"detach it there: xl block-detach {shlex.quote(name)} {vbd.target}",
            )


def _number(vbd: Vbd, numbers: Mapping[Path, str]) -> str:
    """Return the number of a drive's device; empty when it is not known."""
    return _open_number(vbd) or numbers.get(vbd.device, "")


def _open_number(vbd: Vbd) -> str:
    """Return the number of the device that the kernel has open for a drive, as far as it says."""
    is_told = vbd.backend == "vbd" and vbd.kind == "phy"
    return vbd.physical.lower() if is_told else ""


def _numbers(vbds: Iterable[Vbd]) -> dict[Path, str]:
    """Return the numbers of devices by their paths, of those drives of which nothing tells them.

    A path outside of /dev may be that of an image file on a server that is gone: one that does not
    answer is left out, as it is no device of this host.
    """
    paths = {vbd.device for vbd in vbds if not _open_number(vbd)}
    near = {path for path in paths if _DEVICES in path.parents}
    return {
        **{path: xendisks.number_of(path) for path in near},
        **answers.asked(xendisks.number_of, paths - near),
    }
