"""Check that this host's processor has what a memory image needs.

libvirt notices only when it has started QEMU, and then the domain that ran is gone: "guest CPU
doesn't match specification: missing features".  A new microcode, kernel or BIOS may have taken
features away, and another host may never have had them.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import suppress
from functools import partial
from typing import Any

from snapvm.hypervisor import domainxml, processor
from snapvm.hypervisor.libvirtlink import LibvirtFailed, denial, probed, spoken
from snapvm.model import Domain, DomainState
from snapvm.refusals import DomainRefused

_INCOMPATIBLE = 91
"""VIR_ERR_CPU_INCOMPATIBLE (libvirt/virterror.h)."""
_HT = "./feature[@name='ht']"
_HT_ON = "./feature[@name='ht'][@policy='require']"
_KNOWS_HT_SINCE = 11_010_000
_IN_A_PROCESSOR = ("dies", "clusters", "modules", "cores", "threads")
"""What there may be several of in a socket (libvirt, docs/formatdomain, `topology`)."""
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
    _refuse_threads(connection, domain, cpu)
    wanted = (
        root.findtext("./devices/emulator", "").strip() or None,
        kind.get("arch"),
        kind.get("machine"),
        "kvm",
        cpu,
        _SAY_WHY,
    )
    lacking = denial(
        lambda: probed(partial(connection.compareHypervisorCPU, *wanted)), _INCOMPATIBLE
    )
    if lacking:
        why = f"its memory would not start on the processor of this host: {lacking}"
        shown = "`lscpu` shows what the processor has now"
        processor.refuse(domain, why, software="kernel and QEMU", how_to_look=shown)


def _refuse_threads(connection: Any, domain: Domain, cpu: str) -> None:
    """Raise ``DomainRefused`` for an older QEMU's guest of which a processor has several threads.

    Since 10.0 QEMU tells that such a processor has the feature ``ht``, which it had all along, and
    libvirt before 11.10 takes it for another one ("extra features: ht"; libvirt, NEWS 11.10.0).
    Whether this QEMU tells so is seen of the domain that runs now.
    """
    then = domainxml.parse(cpu)
    topology = then.find("topology")
    counts = () if topology is None else (topology.get(part, "1") for part in _IN_A_PROCESSOR)
    if all(count == "1" for count in counts) or then.get("check") != "full":
        return
    now = "" if domain.state is DomainState.SHUTOFF else domainxml.cpu_element(domain.definition)
    if then.find(_HT) is not None or not now or domainxml.parse(now).find(_HT_ON) is None:
        return
    with suppress(LibvirtFailed), spoken():
        if connection.getLibVersion() < _KNOWS_HT_SINCE:
            raise DomainRefused(
                domain=domain.name,
                why="libvirt before 11.10 takes its multi-threaded processor for a different one "
                "from that of its memory, which an older QEMU wrote (ht)",
                remedy="update libvirt, or roll back to a snapshot taken since QEMU was updated, "
                "or to one without memory; to try all the same, shut the domain off",
            )


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
