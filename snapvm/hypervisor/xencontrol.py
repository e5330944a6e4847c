"""Ask Xen about domains, pause them and read their vCPUs; every failure is ``XenFailed``.

Layouts: xen/include/public/domctl.h, the same in Xen 4.17 to 4.22 on x86-64.  Memory to which a
domctl has a pointer must come from libxencall: other memory may be swapped out when Xen reads it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_uint32, c_uint64, c_ulong, create_string_buffer
from typing import Self

from snapvm.hypervisor import xenpolicy
from snapvm.hypervisor.xendomaininfo import INFO_BYTES, DomainInfo
from snapvm.hypervisor.xenlib import XenFailed, XenLibraries, failed, open_libraries
from snapvm.xenguest import HostFacts, Standing, TscFacts, VcpuParts

_LISTED_AT_ONCE = 256
_CONTEXT_BYTES = 5168
_ROOT = slice(5008, 5016)
"""ctrlreg[3] in it (arch-x86/xen.h, struct vcpu_guest_context)."""
_VCPUINFO_BYTES = 24
_DOMCTL_BYTES = 144
_FOR_SUSPEND = 2
"""SHUTDOWN_suspend (public/sched.h)."""
_CALLBACK_IRQ, _ACPI_S_STATE = 0, 14
"""HVM_PARAM_... (public/hvm/params.h)."""
_SHADOW_OP = 10
_SHADOW_OP_OFF = 0
_SHADOW_OP_ENABLE_LOGDIRTY = 2
_GET_EXT_VCPUCONTEXT = 43
_GET_VCPUEXTSTATE = 63
_GET_VCPU_MSRS = 72
_MSR_BYTES = 16


class XenControl:
    """An open connection to Xen; use as a context manager."""

    def __init__(self, libraries: XenLibraries) -> None:
        self.libraries = libraries
        self._library = libraries.control
        self._handle = libraries.control.xc_interface_open(libraries.logger, libraries.logger, 0)
        if not self._handle:
            raise failed("opening Xen's control interface")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._library.xc_interface_close(self._handle)

    @property
    def handle(self) -> int:
        """The ``xc_interface``, for calls of other modules."""
        return int(self._handle)

    # --- domains ---

    def domains(self) -> tuple[DomainInfo, ...]:
        """Return all domains, including those that are being destroyed."""
        found: list[DomainInfo] = []
        first = 0
        while True:
            buffer = create_string_buffer(INFO_BYTES * _LISTED_AT_ONCE)
            count = self._library.xc_domain_getinfolist(
                self._handle, first, _LISTED_AT_ONCE, buffer
            )
            if count < 0:
                raise failed("listing domains")
            found += [DomainInfo.unpacked(buffer.raw[n * INFO_BYTES :]) for n in range(count)]
            if count < _LISTED_AT_ONCE:
                return tuple(found)
            first = found[-1].domid + 1

    def info(self, domid: int) -> DomainInfo | None:
        """Return the state of a domain; None when it does not exist."""
        buffer = create_string_buffer(INFO_BYTES)
        count = self._library.xc_domain_getinfolist(self._handle, domid, 1, buffer)
        if count < 0:
            raise failed(f"asking about domain {domid}")
        # When no domain has this number, Xen returns the next one.
        found = DomainInfo.unpacked(buffer.raw) if count else None
        return found if found is not None and found.domid == domid else None

    def pause(self, domid: int) -> None:
        """Pause a domain; it runs again when it was unpaused as often as it was paused."""
        self._check(self._library.xc_domain_pause(self._handle, domid), "pausing")

    def unpause(self, domid: int) -> None:
        """Take one pause back."""
        self._check(self._library.xc_domain_unpause(self._handle, domid), "unpausing")

    def resume(self, domid: int) -> None:
        """Let a domain that has suspended itself go on, as if the suspend had been cancelled."""
        guest = self.libraries.guest
        self._check(guest.xc_domain_resume(self._handle, domid, 1), "resuming")

    def suspends_itself(self, domid: int) -> bool:
        """Tell whether a guest can be asked to suspend itself.

        An HVM guest without drivers for Xen cannot be, nor one that sleeps (xen.git
        tools/libs/light/libxl_dom_suspend.c, domain_suspend_callback_common).
        """
        info = self.info(domid)
        if info is None or not info.is_hvm:
            return True
        return self._param(domid, _CALLBACK_IRQ) != 0 and self._param(domid, _ACPI_S_STATE) == 0

    def suspend(self, domid: int) -> None:
        """Suspend an HVM guest that does not suspend itself; Xen does that at once."""
        status = self._library.xc_domain_shutdown(self._handle, domid, _FOR_SUSPEND)
        self._check(status, "suspending")

    def _param(self, domid: int, index: int) -> int:
        value = c_uint64(0)
        status = self._library.xc_hvm_param_get(self._handle, domid, index, byref(value))
        self._check(status, f"asking for parameter {index} of an HVM domain")
        return value.value

    def stop_noting_writes(self, domid: int) -> None:
        """Have Xen no longer note what an HVM or PVH guest writes, as it does for a saver."""
        with suppress(XenFailed):  # it may not be noting, which it calls an error as well
            self._domctl(_SHADOW_OP, domid, struct.pack("<II", _SHADOW_OP_OFF, 0))

    def note_writes(self, domid: int) -> bool:
        """Have Xen note what an HVM or PVH guest writes; tell whether it did so already."""
        try:
            self._domctl(_SHADOW_OP, domid, struct.pack("<II", _SHADOW_OP_ENABLE_LOGDIRTY, 0))
        except XenFailed as failure:
            if failure.number == errno.EINVAL:
                return True
            raise
        return False

    def lacking_pages(self, domid: int) -> int:
        """Return how many pages Xen owes an HVM or PVH guest "on demand" and has not.

        When one is read that is not there, by whomever, Xen crashes the guest (xen.git
        xen/arch/x86/mm/p2m-pod.c, p2m_pod_demand_populate).
        """
        total, cached, owed = c_uint64(0), c_uint64(0), c_uint64(0)
        status = self._library.xc_domain_get_pod_target(
            self._handle, domid, byref(total), byref(cached), byref(owed)
        )
        self._check(status, "asking for memory that is there on demand")
        return max(0, owed.value - cached.value)

    def guest_width(self, domid: int) -> int:
        """Return the size of a PV guest's words, 4 or 8 bytes."""
        width = ctypes.c_uint(0)
        status = self._library.xc_domain_get_guest_width(self._handle, domid, byref(width))
        self._check(status, "asking for the guest's width")
        return width.value

    # --- what an image needs ---

    def max_mfn(self) -> int:
        """Return how many machine frames the host has."""
        count = c_ulong(0)
        status = self._library.xc_maximum_ram_page(self._handle, byref(count))
        self._check(status, "asking for the host's memory")
        return count.value

    def host_facts(self, domid: int) -> HostFacts:
        """Return what an image needs of the host: Xen's version and the domain's CPU policy."""
        leaves, msrs = xenpolicy.of_domain(self.libraries, self._handle, domid)
        return HostFacts(
            xen_major=self.libraries.major,
            xen_minor=self.libraries.minor,
            cpuid_policy=leaves,
            msr_policy=msrs,
        )

    def standing(self, info: DomainInfo, shared_info: bytes) -> Standing:
        """Return the state of a domain that is valid only while it stands still."""
        vcpus = tuple(
            self._vcpu(info.domid, vcpu_id)
            for vcpu_id in range(info.max_vcpu_id + 1)
            if self._is_online(info.domid, vcpu_id)
        )
        return Standing(
            shared_info=shared_info,
            shared_info_mfn=info.shared_info_mfn,
            tsc=self._tsc(info.domid),
            vcpus=vcpus,
        )

    def root(self, domid: int) -> bytes:
        """Return the root of the first vCPU's page tables.

        When a domain that stands still is destroyed it loses that root first, before any of its
        frames changes (xen.git arch/x86/domain.c, domain_relinquish_resources).  Xen calls the
        domain dying only at the end of that, which may be minutes later.
        """
        return self._context(domid, 0)[_ROOT]

    def _tsc(self, domid: int) -> TscFacts:
        mode, khz, incarnation, nsec = c_uint32(), c_uint32(), c_uint32(), c_uint64()
        status = self._library.xc_domain_get_tsc_info(
            self._handle, domid, byref(mode), byref(nsec), byref(khz), byref(incarnation)
        )
        self._check(status, "reading the time-stamp counter")
        return TscFacts(
            mode=mode.value, khz=khz.value, nsec=nsec.value, incarnation=incarnation.value
        )

    def _is_online(self, domid: int, vcpu_id: int) -> bool:
        buffer = create_string_buffer(_VCPUINFO_BYTES)
        status = self._library.xc_vcpu_getinfo(self._handle, domid, vcpu_id, buffer)
        self._check(status, f"asking about vCPU {vcpu_id}")
        return buffer.raw[4] != 0

    def _vcpu(self, domid: int, vcpu_id: int) -> VcpuParts:
        return VcpuParts(
            vcpu_id=vcpu_id,
            basic=self._context(domid, vcpu_id),
            extended=self._extended(domid, vcpu_id),
            xsave=self._xsave(domid, vcpu_id),
            msrs=self._msrs(domid, vcpu_id),
        )

    def _context(self, domid: int, vcpu_id: int) -> bytes:
        context = create_string_buffer(_CONTEXT_BYTES)
        status = self._library.xc_vcpu_getcontext(self._handle, domid, vcpu_id, context)
        self._check(status, f"reading vCPU {vcpu_id}")
        return context.raw

    def _extended(self, domid: int, vcpu_id: int) -> bytes:
        block = self._domctl(_GET_EXT_VCPUCONTEXT, domid, struct.pack("<I", vcpu_id))
        (size_bytes,) = struct.unpack_from("<I", block, 20)
        return block[16 : 16 + size_bytes]

    def _xsave(self, domid: int, vcpu_id: int) -> bytes:
        layout = struct.Struct("<I4xQQQ")  # vcpu, xfeature_mask, size, buffer
        block = self._domctl(_GET_VCPUEXTSTATE, domid, layout.pack(vcpu_id, 0, 0, 0))
        _, mask, size_bytes, _ = layout.unpack_from(block, 16)
        if not mask or not size_bytes:
            return b""
        with self._buffer(size_bytes) as address:
            # The second call must repeat mask and size, else it is refused.
            asked = layout.pack(vcpu_id, mask, size_bytes, address)
            block = self._domctl(_GET_VCPUEXTSTATE, domid, asked)
            _, _, size_bytes, _ = layout.unpack_from(block, 16)
            return ctypes.string_at(address, size_bytes)

    def _msrs(self, domid: int, vcpu_id: int) -> bytes:
        layout = struct.Struct("<IIQ")  # vcpu, msr_count, msrs
        block = self._domctl(_GET_VCPU_MSRS, domid, layout.pack(vcpu_id, 0, 0))
        _, count, _ = layout.unpack_from(block, 16)
        if not count:
            return b""
        with self._buffer(count * _MSR_BYTES) as address:
            block = self._domctl(_GET_VCPU_MSRS, domid, layout.pack(vcpu_id, count, address))
            _, count, _ = layout.unpack_from(block, 16)
            return ctypes.string_at(address, count * _MSR_BYTES)

    def _domctl(self, command: int, domid: int, body: bytes) -> bytes:
        """Call a domctl that libxenctrl has no function for; return the block as Xen left it."""
        block = create_string_buffer(_DOMCTL_BYTES)
        struct.pack_into("<IIH", block, 0, command, 0, domid)  # the library enters the version
        ctypes.memmove(ctypes.addressof(block) + 16, body, len(body))
        self._check(self._library.xc_domctl(self._handle, block), f"domctl {command}")
        return block.raw

    @contextmanager
    def _buffer(self, size_bytes: int) -> Iterator[int]:
        """Yield the address of memory that a hypercall may write to."""
        call = self._library.xc_interface_xcall_handle(self._handle)
        address = self.libraries.call.xencall_alloc_buffer(call, size_bytes)
        if not address:
            raise failed("making room for a hypercall")
        try:
            yield address
        finally:
            self.libraries.call.xencall_free_buffer(call, address)

    def _check(self, status: int, what: str) -> None:
        if status < 0:
            raise failed(what)


def open_control() -> XenControl:
    """Connect to Xen; raise ``HostLacks`` without libraries and ``XenFailed`` without rights."""
    return XenControl(open_libraries())
