"""Check that this host's processor still has what a guest that was given all of it has seen.

A memory image does not say what the processor of a domain with ``<cpu mode='host-passthrough'>``
was, and libvirt and QEMU restore it on whatever there is now, in silence.  The guest looked long
ago, and goes on using what a new microcode, kernel or BIOS may have taken away.  So the record of a
snapshot says it.  With KVM ``maximum`` is the same (libvirt, docs/formatdomain, "CPU model
and topology").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapvm.hypervisor import domainxml, processor
from snapvm.model import Domain

CPUINFO = Path("/proc/cpuinfo")
_VENDOR: Final = frozenset({"vendor_id", "CPU implementer"})
_FEATURES: Final = frozenset({"flags", "Features"})
"""Of x86 and of ARM (arch/x86/kernel/cpu/proc.c, arch/arm64/kernel/cpuinfo.c)."""
_NAMES: Final = (
    "3dnow 3dnowext abm adx aes amx_bf16 amx_complex amx_fp16 amx_int8 amx_tile avx avx2 "
    "avx512bw avx512cd avx512dq avx512er avx512f avx512ifma avx512pf avx512vbmi avx512_4fmaps "
    "avx512_4vnniw avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 avx512_vnni "
    "avx512_vp2intersect avx512_vpopcntdq avx512vl avx_ifma avx_ne_convert avx_vnni "
    "avx_vnni_int16 avx_vnni_int8 bmi1 bmi2 clflush clflushopt clwb clzero cmpccxadd cx16 f16c "
    "fma fma4 fsgsbase fxsr gfni hle invpcid la57 mmx mmxext movbe movdir64b movdiri msr pcid "
    "pclmulqdq pdpe1gb pku pni popcnt raoint rdpid rdrand rdseed rdtscp rtm serialize sha512 "
    "sha_ni sm3 sm4 smap smep sse sse2 sse4_1 sse4_2 sse4a ssse3 tbm umip vaes vpclmulqdq "
    "waitpkg wbnoinvd xop xsave xsavec xsaveopt xsaves"
)
"""The instructions, states and MSRs of x86 that a guest uses, as the kernel names them (arch/x86/
include/asm/cpufeatures.h).  Other flags tell how the host protects itself, of what KVM does by
itself, or of speed alone."""
_USED: Final = frozenset(_NAMES.split())
_MODES: Final = frozenset({"host-passthrough", "maximum"})
_MARKS: Final = str.maketrans("", "", "._-")
_OTHERWISE: Final = {"pclmuldq": "pclmulqdq"}
"""What libvirt calls by another word than the kernel.  Others have only other marks in them: the
kernel's ``avx512_vnni`` is libvirt's ``avx512vnni`` (libvirt, src/cpu_map/x86_features.xml)."""


def of_guest(domain: Domain) -> str:
    """Return the vendor and the features of the processor, for a domain that sees all; else none.

    libvirt itself knows of any other domain what its processor has (`libvirtprocessor`).  One that
    libvirt does not know any more has no definition, and will see what its image says.
    """
    if not domain.definition:
        return ""
    root = domainxml.parse(domain.definition)
    cpu = root.find("./cpu")
    if cpu is None or cpu.get("mode") not in _MODES or root.get("type") != "kvm":
        return ""
    off = {
        _unmarked(feature.get("name", ""))
        for feature in cpu.findall("feature")
        if feature.get("policy") in {"disable", "forbid"}
    }
    return " ".join(sorted(word for word in _here() if _unmarked(word) not in off))


def require(domain: Domain, then: str) -> None:
    """Raise ``DomainRefused`` when the processor here lacks something of what a guest saw ``then``.

    Nothing is checked where that is empty, as in older records, or the kernel does not tell.
    """
    here = _here()
    lacking = sorted(set(then.split()) - here)
    if lacking and here:
        why = f"its guest uses what the processor of this host lacks: {' '.join(lacking)}"
        shown = "`lscpu` shows what the processor has now"
        processor.refuse(domain, why, software="kernel and QEMU", how_to_look=shown)


def _unmarked(feature: str) -> str:
    """Return the name of a feature as libvirt's and the kernel's can be compared."""
    return _OTHERWISE.get(feature, feature).translate(_MARKS)


def _here() -> frozenset[str]:
    """Return the vendor and the features of the first processor, as the kernel tells them."""
    return frozenset(_words())


def _words() -> Iterator[str]:
    try:
        with CPUINFO.open(encoding="ascii", errors="replace") as told:
            for line in iter(told.readline, "\n"):
                if not line:
                    return
                name, _, value = (part.strip() for part in line.partition(":"))
                if name in _VENDOR:
                    yield value
                elif name in _FEATURES:
                    words = value.split()
                    yield from words if name == "Features" else _USED.intersection(words)
    except OSError:
        return
