"""Decide which way the memory of a Xen domain is captured: that of PV, or that of HVM and PVH."""

from __future__ import annotations

from contextlib import AbstractContextManager

from snapvm import memoryroom
from snapvm.hypervisor import xenconfig, xenhvm
from snapvm.hypervisor.base import Capture, XenImages
from snapvm.hypervisor.xencapture import XenCapture, XenJob
from snapvm.hypervisor.xenhvm import XenHvmCapture
from snapvm.model import Domain


def foreseen(domain: Domain) -> str:
    """Return how the memory of a domain that runs on would be captured, and why that way.

    Of a PV domain this depends on how much memory this host can spare now.
    """
    if not xenconfig.is_pv(xenconfig.parse(domain.name, domain.definition)):
        return xenhvm.WAY
    room = memoryroom.room_now(domain.memory_bytes)
    if room.holds_all:
        return "precopy while it runs, then what has changed while it stands still"
    if room.holds_digests:
        return (
            "precopy while it runs, told apart by digests, then what has changed while it "
            f"stands still: {room}"
        )
    return f"in one pass, while it stands still until all of it is written: {room}"


def with_memory(job: XenJob, images: XenImages) -> AbstractContextManager[Capture]:
    """Prepare the capture of a domain with its memory, for a block."""
    if job.info.is_pv:
        return XenCapture.prepared(job, images)
    return XenHvmCapture.prepared(job, images)
