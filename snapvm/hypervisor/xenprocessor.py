"""Check that this host's processor has what a memory image needs.

Xen restores a domain in any case.  What its policy has and this host has not is taken away in
silence (xen.git xen/arch/x86/cpu-policy.c, recalculate_cpuid_policy), and the guest, which has
looked long ago, uses it.  A new microcode, BIOS or Xen may have taken features away, and another
host may never have had them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

from snapvm.hypervisor import processor, xenconfig, xenpolicy
from snapvm.hypervisor.xencontrol import XenControl
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.model import Domain

log = logging.getLogger(__name__)

_LEAF: Final = Struct("<6I")
_WITH_SUBLEAVES: Final = (0x7, 0xD)
_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")
_ALL: Final = 0xFFFFFFFF
_OF_LEAF_1: Final = 0x0183F3FF
"""Bits of leaf 0x80000001 that repeat those of leaf 1: AMD's processors have them, and so have
their guests, but not what a guest can have at the most (CPUID_COMMON_1D_FEATURES)."""
_FEATURES: Final = (
    (0x1, 0, "ecx", _ALL),
    (0x1, 0, "edx", _ALL),
    (0x7, 0, "ebx", _ALL & ~(1 << 6 | 1 << 13)),
    (0x7, 0, "ecx", _ALL),
    (0x7, 0, "edx", _ALL),
    (0x7, 1, "eax", _ALL),
    (0xD, 1, "eax", _ALL),
    (0x80000001, 0, "ecx", _ALL),
    (0x80000001, 0, "edx", _ALL & ~_OF_LEAF_1),
    (0x80000008, 0, "ebx", _ALL),
)
"""Where instructions, states and MSRs are told that a guest uses (public/arch-x86/
cpufeatureset.h).  The two bits left out tell of limits, and Xen sets them as the host has them."""
_NAMES: Final = {
    (0x1, "ecx"): {
        12: "fma",
        19: "sse4.1",
        20: "sse4.2",
        23: "popcnt",
        25: "aes",
        26: "xsave",
        28: "avx",
        29: "f16c",
        30: "rdrand",
    },
    (0x7, "ebx"): {
        3: "bmi1",
        4: "hle",
        5: "avx2",
        8: "bmi2",
        11: "rtm",
        16: "avx512f",
        18: "rdseed",
        19: "adx",
        29: "sha",
    },
    (0x7, "edx"): {26: "ibrs/ibpb", 27: "stibp", 31: "ssbd"},
}
"""Names of what is most often missing, as xen-cpuid has them."""

Registers = dict[tuple[int, int, str], int]


def require(
    control: XenControl, domain: Domain, domid: int | None, stored: str, wanted: bytes
) -> None:
    """Raise ``DomainRefused`` for an image whose processor this host has not.

    ``domid`` is that of the domain, if it runs: what it has now needs no check.  ``stored`` is the
    configuration in the image, and ``wanted`` the CPUID leaves of its domain; images of Xen before
    4.14 have none.  For a domain that is off there is only a warning.
    """
    if not wanted:
        return
    is_pv = xenconfig.is_pv(xenconfig.parse_stored(domain.name, stored))
    try:
        here = [xenpolicy.of_host(control.libraries, control.handle, is_pv=is_pv)]
        if domid is not None:
            here.append(xenpolicy.of_domain(control.libraries, control.handle, domid)[0])
    except XenFailed as failure:
        log.debug("Xen does not tell what its guests can have: %s", failure)
        return
    lacking = ", ".join(_lacking(_registers(wanted), [_registers(leaves) for leaves in here]))
    if lacking:
        why = f"its memory would soon fail on the processor of this host, without {lacking}"
        shown = "`xen-cpuid -p` shows what guests can have now"
        processor.refuse(domain, why, software="Xen and its command line", how_to_look=shown)


def _registers(leaves: bytes) -> Registers:
    found: Registers = {}
    whole = len(leaves) // xenpolicy.LEAF_BYTES * xenpolicy.LEAF_BYTES
    for leaf, subleaf, *values in _LEAF.iter_unpack(leaves[:whole]):
        at = subleaf if leaf in _WITH_SUBLEAVES else 0
        found |= {(leaf, at, name): value for name, value in zip(_REGISTERS, values, strict=True)}
    return found


def _lacking(wanted: Registers, here: Iterable[Registers]) -> Iterator[str]:
    for leaf, subleaf, register, mask in _FEATURES:
        place = leaf, subleaf, register
        bits = wanted.get(place, 0) & mask
        for each in here:
            bits &= ~each.get(place, 0)
        names = _NAMES.get((leaf, register), {}) if not subleaf else {}
        for bit in range(32):
            if bits >> bit & 1:
                yield names.get(bit) or f"CPUID {leaf:#x}.{subleaf} {register} bit {bit}"
