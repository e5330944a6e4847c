"""Check an xl image, of snapvm or of Xen, more deeply than verify-stream-v2 and a restore do.

The format is checked while the image is read: what breaks it is `BadImage`.  What is well-formed
and still wrong is a `Finding` in the `Report`: a condition that makes `xl restore` fail late
(xg_sr_restore_x86_pv.c: process_start_info, process_vcpu_basic, update_guest_p2m;
xg_sr_restore_x86_hvm.c: x86_hvm_stream_complete; libxl_dm.c, which starts QEMU), or memory that it
would silently lose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from snapvm.memory import hvmcontext
from snapvm.memory.finding import Finding, Findings, Problem, Report
from snapvm.memory.normalise import ROOT_LEVEL
from snapvm.memory.verifytables import check_p2m, check_tables
from snapvm.memory.xenformat import (
    TYPE_IS_PINNED,
    TYPE_IS_POPULATED,
    TYPE_LEVEL,
    DomainType,
    PageType,
)
from snapvm.memory.xenframes import Survey, survey
from snapvm.memory.xenvcpu import GDT_MAX_ENTRIES, LAYOUTS, VcpuFrames

_WIDTH_BYTES: Final = 8


def verify_image(path: Path) -> Report:
    """Check the image in a regular file; raise `BadImage` when it is not well-formed."""
    findings = Findings()
    with survey(path) as image:
        _check_envelope(image, findings)
        if image.header.domain_type is DomainType.PV:
            tables, vcpus = _check_domain(image, findings), len(image.vcpus)
        else:
            tables, vcpus = 0, _check_machine(image, findings)
        return Report(
            findings=tuple(findings.kept),
            counts=dict(findings.counts),
            pages=image.index.pages,
            tables=tables,
            vcpus=vcpus,
        )


def _check_envelope(image: Survey, findings: Findings) -> None:
    """Check the configuration before the domain, and that nothing follows the domain."""
    detail = _problem_of_config(image.config)
    if detail:
        findings.add(Finding(problem=Problem.CONFIG, detail=detail))
    if image.end_offset_bytes < image.size_bytes:
        detail = f"{image.size_bytes - image.end_offset_bytes} bytes"
        at = image.end_offset_bytes
        findings.add(Finding(problem=Problem.TRAILING, offset_bytes=at, detail=detail))


def _problem_of_config(text: str) -> str:
    """Say why a restore cannot use a configuration; return nothing when it can."""
    general = _general(text)
    if general is None:
        return "it is not JSON with c_info; `xl restore` needs a configuration file"
    domid = general.get("domid", 0)
    return f"it demands to be domain {domid!r:.20}" if domid != 0 else ""


def _is_hvm(text: str) -> bool:
    """Tell whether a configuration is of an HVM domain, which has a QEMU, and not of PVH."""
    return (_general(text) or {}).get("type") == "hvm"


def _general(text: str) -> dict[str, Any] | None:
    """Return what a configuration has in ``c_info``; None without one."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return None
    general = config.get("c_info") if isinstance(config, dict) else None
    return general if isinstance(general, dict) else None


def _check_machine(image: Survey, findings: Findings) -> int:
    """Check what an HVM or PVH domain has beside its pages; return the number of its vCPUs."""
    vcpus: frozenset[int] = frozenset()
    if not image.has_hvm_params:
        findings.add(Finding(problem=Problem.RECORD, detail="HVM_PARAMS"))
    if _is_hvm(image.config) and not image.has_device_model:
        findings.add(Finding(problem=Problem.RECORD, detail="EMULATOR_CONTEXT"))
    if image.hvm_context is None:
        findings.add(Finding(problem=Problem.RECORD, detail="HVM_CONTEXT"))
        return 0
    try:
        vcpus = hvmcontext.vcpus(image.hvm_context)
    except ValueError as error:
        findings.add(Finding(problem=Problem.VCPU, detail=f"HVM_CONTEXT: {error}"))
    else:
        if 0 not in vcpus:
            findings.add(Finding(problem=Problem.RECORD, detail="HVM_CONTEXT of vCPU 0"))
    return len(vcpus)


def _check_domain(image: Survey, findings: Findings) -> int:
    """Check a PV domain; return the number of its tables."""
    if not image.has_shared_info:
        findings.add(Finding(problem=Problem.RECORD, detail="SHARED_INFO"))
    if 0 not in image.vcpus:
        findings.add(Finding(problem=Problem.RECORD, detail="X86_PV_VCPU_BASIC of vCPU 0"))
    for vcpu_id, (at, length_bytes) in image.odd_contexts.items():
        detail = f"vCPU {vcpu_id}: a context of {length_bytes} bytes"
        findings.add(Finding(problem=Problem.VCPU, offset_bytes=at, detail=detail))
    if image.pv_info is None or image.pv_info.width_bytes != _WIDTH_BYTES:
        findings.add(Finding(problem=Problem.UNCHECKED, detail="a 32-bit guest"))
        return 0
    for vcpu in image.vcpus.values():
        _check_vcpu(image, vcpu, findings)
    if 0 in image.vcpus:
        _check_start_info(image, image.vcpus[0].start_info, findings)
    check_p2m(image, findings)
    roots = {vcpu.root for vcpu in image.vcpus.values()}
    roots |= {v.user_root for v in image.vcpus.values() if v.user_root is not None}
    return check_tables(image, roots, findings)


def _type(image: Survey, pfn: int) -> PageType | None:
    """Return a page's type, or None for a PFN beyond the last."""
    if pfn > image.end_pfn:
        return None
    return PageType(int(image.index.types(np.array([pfn], np.uint64))[0]))


def _check_vcpu(image: Survey, vcpu: VcpuFrames, findings: Findings) -> None:
    """Check the root tables and the frames of the GDT of a vCPU."""

    def refuse(pfn: int | None, what: str) -> None:
        detail = f"vCPU {vcpu.vcpu_id}: {what}"
        findings.add(Finding(problem=Problem.VCPU, pfn=pfn, detail=detail))

    for name, root in (("cr3", vcpu.root), ("cr1", vcpu.user_root)):
        if root is None:
            continue
        type_ = _type(image, root)
        if type_ is None or TYPE_LEVEL[type_] != ROOT_LEVEL:
            refuse(root, f"{name} is not an L4 table ({_named(type_)})")
        elif not TYPE_IS_PINNED[type_]:
            detail = f"vCPU {vcpu.vcpu_id}: {name}"
            findings.add(Finding(problem=Problem.UNPINNED_ROOT, pfn=root, detail=detail))
    if vcpu.gdt_entries > GDT_MAX_ENTRIES:
        refuse(None, f"a GDT of {vcpu.gdt_entries} entries")
        return
    for number, pfn in enumerate(vcpu.gdt_frames):
        type_ = _type(image, pfn)
        if type_ is not PageType.NOTAB:
            refuse(pfn, f"GDT frame {number} is not an ordinary page ({_named(type_)})")


def _check_start_info(image: Survey, pfn: int, findings: Findings) -> None:
    """Check the page ``pfn``, start_info, and the rings that it names."""
    type_ = _type(image, pfn)
    page = image.read_frame(pfn) if type_ is PageType.NOTAB else None
    if page is None:
        detail = f"start_info is not an ordinary page ({_named(type_)})"
        findings.add(Finding(problem=Problem.START_INFO, pfn=pfn, detail=detail))
        return
    layout = LAYOUTS[_WIDTH_BYTES]
    rings = (("xenstore", layout.start_info_store), ("console", layout.start_info_console))
    for name, offset in rings:
        ring = int(layout.word.unpack_from(page, offset)[0])
        type_ = _type(image, ring)
        if type_ is None or not TYPE_IS_POPULATED[type_]:
            detail = f"the {name} ring is not in the image ({_named(type_)})"
            findings.add(Finding(problem=Problem.START_INFO, pfn=ring, detail=detail))


def _named(type_: PageType | None) -> str:
    return "beyond the last frame" if type_ is None else f"type {type_.name}"
