"""Read CPU policies of Xen: which features a domain has, or could have at the most on this host.

tools/include/xenguest.h (xc_cpu_policy_*), xen/include/public/sysctl.h (XEN_SYSCTL_cpu_policy_*);
the same in Xen 4.17 to 4.22.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from ctypes import byref, c_uint32, create_string_buffer
from typing import Final

from snapvm.hypervisor.xenlib import XenLibraries, failed

LEAF_BYTES: Final = 24
"""struct xen_cpuid_leaf: leaf, subleaf, eax, ebx, ecx, edx (arch-x86/xen.h)."""
_MSR_BYTES: Final = 16
_PV_MAX, _HVM_MAX = 2, 3


def of_domain(libraries: XenLibraries, handle: int, domid: int) -> tuple[bytes, bytes]:
    """Return the CPUID leaves and the MSRs of a domain's policy; raise ``XenFailed``."""
    read = libraries.guest.xc_cpu_policy_get_domain
    return _serialised(libraries, handle, lambda policy: read(handle, domid, policy))


def of_host(libraries: XenLibraries, handle: int, *, is_pv: bool) -> bytes:
    """Return the CPUID leaves that a domain can have here at the most; raise ``XenFailed``."""
    read, kind = libraries.guest.xc_cpu_policy_get_system, _PV_MAX if is_pv else _HVM_MAX
    return _serialised(libraries, handle, lambda policy: read(handle, kind, policy))[0]


def _serialised(
    libraries: XenLibraries, handle: int, read: Callable[[int], int]
) -> tuple[bytes, bytes]:
    guest = libraries.guest
    leaf_count, msr_count = c_uint32(0), c_uint32(0)
    if guest.xc_cpu_policy_get_size(handle, byref(leaf_count), byref(msr_count)) < 0:
        raise failed("asking for the size of the CPU policy")
    leaves = create_string_buffer(leaf_count.value * LEAF_BYTES)
    msrs = create_string_buffer(msr_count.value * _MSR_BYTES)
    with ExitStack() as stack:
        policy = guest.xc_cpu_policy_init()
        if not policy:
            raise failed("making room for the CPU policy")
        stack.callback(guest.xc_cpu_policy_destroy, policy)
        if read(policy) < 0:
            raise failed("reading the CPU policy")
        counts = byref(leaf_count), byref(msr_count)
        if guest.xc_cpu_policy_serialise(handle, policy, leaves, counts[0], msrs, counts[1]) < 0:
            raise failed("packing the CPU policy")
    return leaves.raw[: leaf_count.value * LEAF_BYTES], msrs.raw[: msr_count.value * _MSR_BYTES]
