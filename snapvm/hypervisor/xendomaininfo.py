"""What Xen says of a domain: xc_domaininfo_t, which is struct xen_domctl_getdomaininfo.

Layout: xen/include/public/domctl.h, the same in Xen 4.17 to 4.22 on x86-64.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from snapvm.xenguest import FRAME_BYTES

INFO_BYTES = 112
_LAYOUT = struct.Struct("<H2xIQ32xQ12xI4x16s12xI")
"""domain, flags, tot_pages, shared_info_frame, max_vcpu_id, handle, arch_config.emulation_flags;
what is between is not used."""
_FLAG_DYING = 1
_FLAG_HVM = 2
"""XEN_DOMINF_hvm_guest (public/domctl.h); PVH domains have it too."""
_FLAG_SHUTDOWN = 4
_FLAG_PAUSED = 8
_SHUTDOWN_SUSPEND = 2
_SHUTDOWN_CRASH = 3
_EMULATES_PIC = 32
"""XEN_X86_EMU_PIC (public/arch-x86/xen.h); PVH has only a local APIC (libxl_x86.c)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainInfo:
    """What Xen says of a domain (xc_domaininfo_t)."""

    domid: int
    uuid: str
    flags: int
    total_pages: int
    shared_info_mfn: int
    max_vcpu_id: int
    emulated: int
    """What Xen emulates for it (XEN_X86_EMU_...)."""

    @classmethod
    def unpacked(cls, data: bytes) -> DomainInfo:
        """Return what stands at the beginning of ``data``, which may be longer."""
        fields = _LAYOUT.unpack_from(data)
        domid, flags, total_pages, shared_info_mfn, max_vcpu_id, handle, emulated = fields
        return cls(
            domid=domid,
            uuid=str(uuid.UUID(bytes=handle)),
            flags=flags,
            total_pages=total_pages,
            shared_info_mfn=shared_info_mfn,
            max_vcpu_id=max_vcpu_id,
            emulated=emulated,
        )

    @property
    def memory_bytes(self) -> int:
        """How much memory it has now."""
        return self.total_pages * FRAME_BYTES

    @property
    def is_dying(self) -> bool:
        """Whether it is being destroyed."""
        return bool(self.flags & _FLAG_DYING)

    @property
    def is_pv(self) -> bool:
        """Whether it is a PV domain, and not an HVM or PVH domain."""
        return not self.flags & _FLAG_HVM

    @property
    def is_hvm(self) -> bool:
        """Whether it is an HVM domain, which has a QEMU, and not a PV or PVH domain."""
        return not self.is_pv and bool(self.emulated & _EMULATES_PIC)

    @property
    def is_paused(self) -> bool:
        """Whether the toolstack has paused it."""
        return bool(self.flags & _FLAG_PAUSED)

    @property
    def is_shut_down(self) -> bool:
        """Whether it has stopped itself: it is off, crashed, or suspended."""
        return bool(self.flags & _FLAG_SHUTDOWN)

    @property
    def is_suspended(self) -> bool:
        """Whether it has suspended itself, to be saved."""
        return self.is_shut_down and self.flags >> 16 & 255 == _SHUTDOWN_SUSPEND

    @property
    def is_crashed(self) -> bool:
        """Whether it has crashed and was kept."""
        return self.is_shut_down and self.flags >> 16 & 255 == _SHUTDOWN_CRASH
