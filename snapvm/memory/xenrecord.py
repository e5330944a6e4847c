"""The records of libxenguest's migration stream, as values.

Fields have the names of docs/specs/libxc-migration-stream.pandoc (xen.git), which describes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import Words
from snapvm.memory.xenformat import TYPE_HAS_DATA, DomainType, PageTypes, RecordType


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHeader:
    """The contents of the two headers before the records."""

    version: int
    domain_type: DomainType
    xen_major: int
    xen_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PvInfo:
    """X86_PV_INFO: words of 8 bytes and tables of 4 levels, or 4 bytes and 3 levels."""

    width_bytes: int
    levels: int


@dataclass(frozen=True, slots=True, kw_only=True)
class P2mFrames:
    """X86_PV_P2M_FRAMES: the PFNs of the frames that hold the guest's p2m up to ``end_pfn``."""

    offset_bytes: int
    end_pfn: int
    """The last PFN, not the number of PFNs."""
    pfns: Words


@dataclass(frozen=True, slots=True, kw_only=True)
class PageBatch:
    """Some pages of a PAGE_DATA record, at most `PAGES_PER_BATCH`."""

    offset_bytes: int
    """The offset of the first entry."""
    pfns: Words
    types: PageTypes
    data_offset_bytes: int
    """The offset of the first page's data; each type that has data has one page there."""
    data: npt.NDArray[np.uint8] | None
    """The pages, shape (n, 4096); None when the caller did not ask for them."""

    @property
    def has_data(self) -> npt.NDArray[np.bool_]:
        """Mark the entries whose pages are in ``data``, in the same order."""
        return np.asarray(TYPE_HAS_DATA[self.types], np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuState:
    """X86_PV_VCPU_BASIC, EXTENDED, XSAVE or MSRS of one vCPU, as the domctls have it."""

    offset_bytes: int = 0
    part: RecordType
    vcpu_id: int
    context: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TscInfo:
    """X86_TSC_INFO."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedInfo:
    """SHARED_INFO: the page that the domain shares with Xen."""

    page: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Any other record, with its body unread: the policies, and the records of HVM domains."""

    type: RecordType
    body: bytes


Record = PvInfo | P2mFrames | PageBatch | VcpuState | TscInfo | SharedInfo | Blob
