"""Check that the devices of this host are there that a libvirt domain gets when it is booted.

A USB stick may have been pulled out, or a network card put into another slot.  libvirt would notice
only after the running domain has been ended.  Memory is never captured with such devices.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from snapvm.hypervisor import domainxml
from snapvm.refusals import DomainRefused

BUSES = Path("/sys/bus")
_DISPENSABLE = "optional"


def require(domain: str, definition: str, remedy: str) -> None:
    """Raise ``DomainRefused`` for the first missing device."""
    for name in _missing(domainxml.parse(definition)):
        raise DomainRefused(
            domain=domain,
            why=f"it would not start: this host has no {name} for it",
            remedy=f"connect it again, or {remedy}",
        )


def _missing(root: ET.Element) -> Iterator[str]:
    for source in root.iterfind("./devices/hostdev[@type='usb']/source"):
        if source.get("startupPolicy") != _DISPENSABLE:
            yield from _missing_usb(source)
    for kind in ("hostdev[@type='pci']", "interface[@type='hostdev']"):
        for address in root.iterfind(f"./devices/{kind}/source/address"):
            if address.get("type", "pci") == "pci":
                yield from _missing_pci(address)
    for address in root.iterfind("./devices/hostdev[@type='mdev']/source/address[@uuid]"):
        uuid = address.get("uuid", "").lower()
        if not (BUSES / "mdev" / "devices" / uuid).exists():
            yield f"mediated device {uuid}"


def _missing_pci(address: ET.Element) -> Iterator[str]:
    with suppress(ValueError):
        domain, bus, slot, function = (
            int(address.get(part, "0"), 0) for part in ("domain", "bus", "slot", "function")
        )
        name = f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"
        if not (BUSES / "pci" / "devices" / name).exists():
            yield f"PCI device {name}"


def _missing_usb(source: ET.Element) -> Iterator[str]:
    """Look for the vendor's and product's ids or, when they are not given, for bus and device."""
    vendor, product, address = map(source.find, ("vendor", "product", "address"))
    with suppress(ValueError):
        if vendor is not None and product is not None:
            ids = int(vendor.get("id", ""), 0), int(product.get("id", ""), 0)
            if ids not in _usb("idVendor", "idProduct", base=16):
                yield f"USB device {ids[0]:04x}:{ids[1]:04x}"
        elif address is not None:
            place = int(address.get("bus", ""), 0), int(address.get("device", ""), 0)
            if place not in _usb("busnum", "devnum", base=10):
                yield f"USB device at bus {place[0]} device {place[1]}"


def _usb(*names: str, base: int) -> Iterator[tuple[int, ...]]:
    for device in (BUSES / "usb" / "devices").glob("*"):
        with suppress(OSError, ValueError):  # an interface of a device has no such numbers
            yield tuple(int((device / name).read_text(), base) for name in names)
