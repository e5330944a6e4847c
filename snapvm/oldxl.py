"""What the xl of older Xens does to a domain whose memory is captured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from snapvm.model import HypervisorKind
from snapvm.release import release

_STAYS_SINCE = (4, 20)
"""Before it the xl that looks after a domain ends at its suspend (xen.git 6b8c85872e)."""


def told(hypervisor: HypervisorKind, versions: Mapping[str, str]) -> Iterator[str]:
    """Yield that nobody looks after the domain any more, where it is so."""
    version = versions.get("xen", "")
    if hypervisor is not HypervisorKind.XEN or release(version) >= _STAYS_SINCE:
        return
    yield (
        f"the xl of Xen {version} looks after a domain no more once its memory was captured, by "
        "`snapvm take` or `xl save -c`: when the guest then reboots or powers itself off, nobody "
        "starts it again or clears it away (mended in Xen 4.20)"
    )
