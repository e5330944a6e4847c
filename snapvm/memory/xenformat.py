"""The numbers and layouts of Xen's save files; nothing here reads or writes.

Sources (xen.git): docs/specs/libxc-migration-stream.pandoc and libxl-migration-stream.pandoc,
tools/libs/guest/xg_sr_stream_format.h, tools/libs/light/libxl_sr_stream_format.h, tools/xl/xl.h
(struct save_file_header), xen/include/public/domctl.h (XEN_DOMCTL_PFINFO_*) and arch-x86/xen.h.
All are the same in Xen 4.17 to 4.20.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm.memory.pagingmode import Words

PageTypes = npt.NDArray[np.uint8]
"""The type nibble of each page, see `PageType`."""

# --- the xl file --------------------------------------------------------------------------------

XL_MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
XL_HEADER: Final = Struct("<IIII")
"""byteorder, mandatory_flags, optional_flags, optional_data_len; after the magic."""
XL_BYTEORDER: Final = 0x01020304
CONFIG_LENGTH: Final = Struct("<I")
"""The optional data begin with the length of the configuration, its NUL included."""


class XlFlag(IntFlag):
    """The mandatory flags; a restore refuses any other."""

    CONFIG_IS_JSON = 1
    STREAM_V2 = 2


# --- records, the same in both streams ----------------------------------------------------------

RECORD_HEADER: Final = Struct("<II")
"""type, length of the body; the body is padded with zeroes to a multiple of 8."""
RECORD_ALIGN_BYTES: Final = 8
RECORD_MAX_BYTES: Final = 128 << 20
"""REC_LENGTH_MAX (xg_sr_common.h)."""
OPTIONAL_RECORD: Final = 1 << 31

# --- the libxl stream ---------------------------------------------------------------------------

LIBXL_HEADER: Final = Struct(">QII")
LIBXL_IDENT: Final = 0x4C6962786C466D74
LIBXL_VERSION: Final = 2
LIBXL_BIG_ENDIAN: Final = 1
LIBXL_CONVERTED: Final = 2
"""Set in a stream that was converted from one of Xen before 4.6; the format is the same."""
EMULATOR_HEADER: Final = Struct("<II")
"""emulator_id, index; then the record's own data."""
EMULATOR_QEMU: Final = 2
"""The emulator_id of every QEMU that is not the one of before 2012."""


class LibxlRecord(IntEnum):
    """Record types of the outer stream."""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


# --- the libxc stream ---------------------------------------------------------------------------

IMAGE_HEADER: Final = Struct(">QIIHHI")
IMAGE_MARKER: Final = (1 << 64) - 1
IMAGE_ID: Final = 0x58454E46
IMAGE_BIG_ENDIAN: Final = 1
DOMAIN_HEADER: Final = Struct("<IHHII")
"""type, page_shift, 0, xen_major, xen_minor."""


class DomainType(IntEnum):
    """The kind of domain in a stream; a PVH domain counts as HVM."""

    PV = 1
    HVM = 2


class RecordType(IntEnum):
    """Record types of the inner stream."""

    END = 0x00
    PAGE_DATA = 0x01
    X86_PV_INFO = 0x02
    X86_PV_P2M_FRAMES = 0x03
    X86_PV_VCPU_BASIC = 0x04
    X86_PV_VCPU_EXTENDED = 0x05
    X86_PV_VCPU_XSAVE = 0x06
    SHARED_INFO = 0x07
    X86_TSC_INFO = 0x08
    HVM_CONTEXT = 0x09
    HVM_PARAMS = 0x0A
    TOOLSTACK = 0x0B
    X86_PV_VCPU_MSRS = 0x0C
    VERIFY = 0x0D
    CHECKPOINT = 0x0E
    CHECKPOINT_DIRTY_PFN_LIST = 0x0F
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12


VCPU_RECORDS: Final = (
    RecordType.X86_PV_VCPU_BASIC,
    RecordType.X86_PV_VCPU_EXTENDED,
    RecordType.X86_PV_VCPU_XSAVE,
    RecordType.X86_PV_VCPU_MSRS,
)
"""The records that a vCPU may have, in the order in which they are written."""

PV_INFO: Final = Struct("<BBHI")
P2M_RANGE: Final = Struct("<II")
PAGE_COUNT: Final = Struct("<II")
VCPU_HEADER: Final = Struct("<II")
TSC_INFO: Final = Struct("<IIQII")
HVM_PARAM_COUNT: Final = Struct("<II")
HVM_PARAM_BYTES: Final = 16
CPUID_LEAF_BYTES: Final = 24
MSR_ENTRY_BYTES: Final = 16

PAGES_PER_BATCH: Final = 1024
"""MAX_BATCH_SIZE (xg_sr_common.h): how many pages Xen's own saver puts into a record."""
PAGE_TYPE_SHIFT: Final = 60
PAGE_PFN_BITS: Final = 52


class PageType(IntEnum):
    """The type of a page, in the upper nibble of its entry; 5 to 8 do not exist."""

    NOTAB = 0x0
    L1TAB = 0x1
    L2TAB = 0x2
    L3TAB = 0x3
    L4TAB = 0x4
    L1TAB_PINNED = 0x9
    L2TAB_PINNED = 0xA
    L3TAB_PINNED = 0xB
    L4TAB_PINNED = 0xC
    BROKEN = 0xD
    XALLOC = 0xE
    XTAB = 0xF


_LAST: Final = 16
# Pinned types are listed one by one, because XALLOC and XTAB have the pin bit too.
TYPE_IS_LEGAL: Final = np.array([n in set(PageType) for n in range(_LAST)])
TYPE_LEVEL: Final = np.array([0, 1, 2, 3, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0], np.uint8)
"""The page-table level of each type; 0 when it is not a page table."""
TYPE_IS_PINNED: Final = np.array([9 <= n <= 12 for n in range(_LAST)])
TYPE_HAS_DATA: Final = np.array([n <= 4 or 9 <= n <= 12 for n in range(_LAST)])
TYPE_IS_POPULATED: Final = TYPE_HAS_DATA | (np.arange(_LAST) == PageType.XALLOC)
"""Whether a restore gives the PFN a frame."""


def frames_of_p2m(end_pfn: int, width_bytes: int) -> int:
    """Return how many frames hold a p2m whose last PFN is ``end_pfn``."""
    per_frame = 4096 // width_bytes
    return end_pfn // per_frame + 1


def page_entries(pfns: Words, types: PageTypes) -> Words:
    """Pack PFNs and types into the entries of a PAGE_DATA record."""
    return types.astype(np.uint64) << np.uint64(PAGE_TYPE_SHIFT) | pfns
