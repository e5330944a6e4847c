"""Check that libvirt and QEMU still support what a domain's definition uses.

SELinux or AppArmor may have been switched off, and a new package of QEMU may lack SPICE.  libvirt
would notice only after the running domain has been ended.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, probed, spoken
from snapvm.refusals import DomainRefused

_UNLABELLED = frozenset({"none", "dac"})
"""Kinds of security labels that every host supports."""
_MINDS_NO_UNCONFINED_SINCE = 12_003_000
"""libvirt, NEWS 12.3.0."""
_SCREEN, _CARD = "screen", "graphics card"
_DEVICES = (
    (_SCREEN, "./devices/graphics", "graphics", "type", frozenset({"spice", "vnc", "sdl"})),
    (_CARD, "./devices/video/model", "video", "modelType", frozenset({"qxl", "virtio"})),
)
"""The device's name, where a definition has it (in `type`), where libvirt lists the kinds that QEMU
has (docs/formatdomaincaps), and the kinds that are in a module or that some builds leave out."""


def require(
    connection: Any,
    domain: str,
    definition: str,
    remedy: str,
    capabilities: str,
    *,
    of_memory: bool,
) -> None:
    """Raise ``DomainRefused`` for the first thing that this host does not support.

    What libvirt does not say is taken as supported.  ``remedy`` says how to change the definition,
    and ``capabilities`` are those of its emulator (``libvirtneeds.require``).  Memory fits only the
    graphics card that it was captured with: QEMU restores it with no other.
    """
    root = domainxml.parse(definition)
    for model in _unknown_labels(connection, root):
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: it is labelled for {model}, which libvirt does not use here",
            remedy="make libvirt use it again (the kernel's command line, and security_driver in "
            f"qemu.conf), or {remedy}, or none",
        )
    for what, kind in _lacking(capabilities, root):
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: its {what} is {kind}, which QEMU does not have here",
            remedy=f"install QEMU's module for {kind}"
            + ("" if of_memory and what == _CARD else f", or {remedy}"),
        )


def _unknown_labels(connection: Any, root: ET.Element) -> list[str]:
    labels = [label.attrib for label in root.iterfind(".//seclabel[@model]")]
    wanted = {label["model"] for label in labels} - _UNLABELLED
    if not wanted:
        return []
    try:
        said = domainxml.parse(probed(connection.getCapabilities))
    except LibvirtFailed:
        return []
    unknown = wanted - {model.text for model in said.iterfind("./host/secmodel/model")}
    if unknown and _minds_no_unconfined(connection):
        unknown &= {label["model"] for label in labels if label.get("type") != "none"}
    return sorted(unknown)


def _minds_no_unconfined(connection: Any) -> bool:
    """Tell whether a domain may start whose label of a model that is not there says "none"."""
    with suppress(LibvirtFailed), spoken():
        return bool(connection.getLibVersion() >= _MINDS_NO_UNCONFINED_SINCE)
    return False


def _lacking(capabilities: str, root: ET.Element) -> Iterator[tuple[str, str]]:
    if not capabilities:
        return
    said = domainxml.parse(capabilities)
    for what, where, listed, named, optional in _DEVICES:
        values = said.iterfind(f"./devices/{listed}/enum[@name='{named}']/value")
        there = {value.text for value in values}
        for device in root.iterfind(where):
            wanted = device.get("type", "")
            if there and wanted in optional - there:
                yield what, wanted
