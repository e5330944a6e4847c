"""Tell which libvirt, which QEMU and, perhaps, which processor will have to restore a memory.

libvirt says the version of the QEMU that it looks for by itself.  A domain may name another, in
``/opt`` perhaps, that can restore other images.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import Any

from snapvm.hypervisor import domainxml, hostprocessor
from snapvm.hypervisor.libvirtlink import LibvirtFailed, Link, probed
from snapvm.hypervisor.qmp import Qmp
from snapvm.model import Domain
from snapvm.release import release

PROCESSOR = "processor"
"""Beside the versions in a record: what `hostprocessor` tells, if it does."""


def of(link: Link, domain: Domain) -> dict[str, str]:
    """Return the versions of libvirt and of a domain's QEMU, as far as somebody says them.

    And what a domain sees of the processor of this host, where it sees all of it.

    One that only the domain names is asked itself, which it answers only while the domain is on.
    """
    found = {}
    for name, ask in (("libvirt", "getLibVersion"), ("qemu", "getVersion")):
        with suppress(LibvirtFailed):
            found[name] = _dotted(probed(getattr(link.connection, ask)))
    with suppress(LibvirtFailed):
        if domain.state.has_memory and _has_own_qemu(link.connection, domain):
            version = Qmp(link.domain(domain.uuid)).execute("query-version")["qemu"]
            found["qemu"] = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
    if processor := hostprocessor.of_guest(domain):
        found[PROCESSOR] = processor
    return found


def release_of(connection: Any) -> tuple[int, ...]:
    """Return the release of libvirt, such as (11, 2); raise libvirt's error."""
    return release(_dotted(connection.getLibVersion()))


def _has_own_qemu(connection: Any, domain: Domain) -> bool:
    """Tell whether a domain names another QEMU than the one libvirt looks for by itself.

    Of that one the version of the process does not matter: the program may have been upgraded.
    """
    root = domainxml.parse(domain.definition)
    emulator, kind = root.findtext("./devices/emulator", "").strip(), root.find("./os/type")
    if not emulator or kind is None:
        return False
    default = ""
    of_default = (None, kind.get("arch"), None, root.get("type"), 0)
    with suppress(LibvirtFailed):  # it may find none
        told = probed(partial(connection.getDomainCapabilities, *of_default))
        default = domainxml.parse(told).findtext("path", "").strip()
    return os.path.realpath(emulator) != os.path.realpath(default or "/")


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
