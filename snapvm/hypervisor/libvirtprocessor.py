"""Check that this host's processor has what a memory image needs.

libvirt notices only when it has started QEMU, and then the domain that ran is gone: "guest CPU
doesn't match specification: missing features".  A new microcode, kernel or BIOS may have taken
features away, and another host may never have had them.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import partial
from typing import Any

from snapvm.hypervisor import domainxml, processor
from snapvm.hypervisor.libvirtlink import denial
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

_INCOMPATIBLE = 91
"""VIR_ERR_CPU_INCOMPATIBLE (libvirt/virterror.h)."""
_SAY_WHY = 1
"""VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE: an error that names what is missing."""


def require(connection: Any, domain: Domain, definition: str, cookie: str) -> None:
    """Raise ``DomainRefused`` for an image whose processor KVM cannot provide here.

    ``definition`` is that of the image.  A processor on which the domain runs now needs no check,
    nor does an emulated one, which libvirt does not compare (qemuProcessUpdateGuestCPU).  For a
    domain that is off there is only a warning: it has no memory to lose, and libvirt may accept.
    """
    cpu = _of_cookie(cookie)
    root = domainxml.parse(definition)
    kind = root.find("./os/type")
    if not cpu or kind is None or root.get("type") != "kvm" or _is_present(cpu, domain):
        return
    wanted = (
        root.findtext("./devices/emulator", "").strip() or None,
        kind.get("arch"),
        kind.get("machine"),
        "kvm",
        cpu,
        _SAY_WHY,
    )
    lacking = denial(partial(connection.compareHypervisorCPU, *wanted), _INCOMPATIBLE)
    if lacking:
        why = f"its memory would not start on the processor of this host: {lacking}"
        shown = "`lscpu` shows what the processor has now"
        processor.refuse(domain, why, software="kernel and QEMU", how_to_look=shown)


def _of_cookie(cookie: str) -> str:
    """Return the ``<cpu>`` of a cookie with its features; empty when it names no model."""
    try:
        cpu = domainxml.parse(cookie).find("cpu") if cookie else None
    except DomainRefused:  # the restore will have libvirt judge the cookie
        return ""
    return "" if cpu is None or cpu.find("model") is None else _text(cpu)


def _is_present(cpu: str, domain: Domain) -> bool:
    if domain.state is DomainState.SHUTOFF:
        return False
    element = domainxml.cpu_element(domain.definition)
    return bool(element) and cpu == _text(domainxml.parse(element))


def _text(element: ET.Element) -> str:
    """Return an element as text that does not depend on how it was laid out."""
    return ET.canonicalize(ET.tostring(element, encoding="unicode"), strip_text=True)
