"""What a Xen driver and the engine that makes an image of a PV guest tell each other.

Neither knows the other: the driver reaches the guest through libxenctrl and knows no page tables,
the engine knows page tables and formats and calls no hypervisor.  Frames go by machine frame number
(MFN); arrays of them are memoryviews of 64-bit words, so that nothing here needs numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

FRAME_BYTES = 4096
TYPE_SHIFT = 28
"""XEN_DOMCTL_PFINFO_LTAB_SHIFT (xen/include/public/domctl.h)."""
TYPES_AT_ONCE = 1024
"""The most that XEN_DOMCTL_getpageframeinfo3 answers in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What an image says of its host; none of it changes while the guest runs."""

    xen_major: int
    xen_minor: int
    cpuid_policy: bytes
    """xen_cpuid_leaf_t, 24 bytes each."""
    msr_policy: bytes
    """xen_msr_entry_t, 16 bytes each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuParts:
    """The state of an online vCPU as the domctls have it; a part may be empty."""

    vcpu_id: int
    basic: bytes
    """vcpu_guest_context, with MFNs."""
    extended: bytes
    xsave: bytes
    msrs: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TscFacts:
    """The virtual time-stamp counter (xc_domain_get_tsc_info)."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What only a domain that stands still can tell."""

    shared_info: bytes
    shared_info_mfn: int
    tsc: TscFacts
    vcpus: tuple[VcpuParts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """Frames of the guest, mapped to be read; ``close`` ends it, and no view may outlive that."""

    view: memoryview
    """The frames one behind the other; one that is not there must not be touched (SIGBUS)."""
    missing: tuple[int, ...]
    """Which of the frames asked for are not there, by their place."""
    close: Callable[[], None]


class GuestFrames(Protocol):
    """A domain's memory; every method raises ``CaptureFailed``.

    Xen keeps what is mapped of a domain that is gone.  One that reboots is made anew seconds after
    it has shut down, and fails for good where the host has not the memory twice: whoever holds much
    looks often whether the domain is still there, and gives back what he has when it is not.
    """

    @property
    def max_mfn(self) -> int:
        """How many machine frames the host has."""

    def require_there(self) -> None:
        """Raise ``WindowBroken`` when the domain has shut down, crashed, or is being destroyed."""

    def frame_count(self) -> int:
        """Return how many frames the domain has now, as Xen counts them."""

    def map(self, mfns: memoryview) -> Mapping:
        """Map frames of the domain; those that are not there are said to be missing."""

    def types(self, mfns: memoryview) -> memoryview:
        """Return a word for each frame, `TYPES_AT_ONCE` of them at most: its type in four bits.

        From bit `TYPE_SHIFT` up it is what PAGE_DATA of Xen's stream has: 0 ordinary, 1 to 4 a
        table of that level, plus 8 when it is pinned, 13 broken, 15 not the domain's.
        """

    def machine_to_physical(self) -> AbstractContextManager[memoryview]:
        """Map Xen's table of the PFN of each machine frame, ``max_mfn`` words of 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenImage:
    """What the engine tells of the image that it has written."""

    size_bytes: int
    foreign: dict[str, int] = field(default_factory=dict)
    """How many entries of page tables were zeroed because their frame is not the domain's, by
    what the frame was, such as "shared info" or "unknown"."""
    changed_frames: int = 0
    """How many frames the window had to copy."""
    frames: int = 0
    restored_frames: int = 0
    """How many frames a restore gives the domain at the most: to each PFN of which there has ever
    been a page in the image (tools/libs/guest/xg_sr_restore.c, populate_pfns).  Xen's own number is
    another: it counts what the guest gave back while we had it mapped."""
