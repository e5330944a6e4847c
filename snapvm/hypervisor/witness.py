"""Notice what somebody else did to a domain while it was captured; such a capture is thrown away.

libvirt does not know of the pause: it lets anybody resume, reset or destroy a suspended domain,
plug a device into it or begin a save.  QEMU's and libvirt's events tell of that, even when it was
undone again; the rest is found by comparing the domain with what it was before.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from snapvm.failures import WindowBroken
from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import (
    XML_SECURE,
    LibvirtFailed,
    is_busy,
    looked_up_again,
    spoken,
)
from snapvm.hypervisor.runevents import RunEvents
from snapvm.model import Domain

_AT_ANY_TIME = {
    "DEVICE_ADDED": "a device was plugged in",
    "DEVICE_DELETED": "a device was unplugged",
}
"""Events that count from the plan on: the domain's XML in the image would not fit its memory."""
_STANDING_STILL = {
    "RESET": "somebody reset it",
    "SHUTDOWN": "somebody shut it off",
    "BLOCK_IO_ERROR": "a disk of it reported an error",
}
WATCHED = (*_AT_ANY_TIME, *_STANDING_STILL)
"""The events to listen to, beside STOP and RESUME."""


class Witness:
    """Compares a domain with what it was when its capture began."""

    def __init__(self, domain: Domain, handle: Any, events: RunEvents) -> None:
        self._domain = domain
        self._handle = handle
        self._events = events
        self._first = len(events.seen())
        self._run = handle.ID()

    def check(self, *, stopped_at: float | None) -> None:
        """Raise ``WindowBroken`` when somebody else did something to the domain since."""
        for event in self._events.seen()[self._first :]:
            was_standing = stopped_at is not None and event.at >= stopped_at
            what = _AT_ANY_TIME.get(event.name) or (
                _STANDING_STILL.get(event.name) if was_standing else None
            )
            if what:
                raise self._broken(what)
        try:
            with spoken():
                changed = self._changed()
        except LibvirtFailed as why:
            raise self._broken(str(why)) from why
        if changed:
            raise self._broken(changed)

    def _changed(self) -> str:
        """Say what has changed; return an empty text when nothing has."""
        now = looked_up_again(self._handle, self._domain.uuid)
        if now.ID() != self._run:
            return "somebody restarted it"
        if is_busy(now):
            return "somebody began to save or migrate it"
        definition = now.XMLDesc(XML_SECURE)
        if devices(definition) != devices(self._domain.definition):
            return "its devices were changed"
        if processors(definition) != processors(self._domain.definition):
            return "its processors were changed"
        return ""

    def _broken(self, what: str) -> WindowBroken:
        return WindowBroken(domain=self._domain.name, what=what)


def devices(definition: str) -> tuple[str, ...]:
    """Return each device as text, without what the guest, or a mere look at it, changes."""
    found = []
    for device in domainxml.parse(definition).iterfind("./devices/*"):
        for target in device.iterfind("target[@state]"):
            # It tells whether the guest's agent has opened its channel (docs/formatdomain).
            del target.attrib["state"]
        for target in device.iterfind("target[@tray]"):
            # The guest opens it when it ejects a medium.
            del target.attrib["tray"]
        for target in device.iterfind("target[current]"):
            # It tells how much of the offered memory the guest has taken; libvirt does not read it
            # from an image (domain_conf.c, virDomainMemoryTargetDefParseXML).
            for current in target.findall("current"):
                target.remove(current)
        for mac in device.iterfind("mac[@currentAddress]"):
            # The guest has given its interface another address, as a bond does (libvirt 11.2).
            del mac.attrib["currentAddress"]
        for stats in device.findall("stats"):
            # How often the balloon says how it is doing: whoever begins to watch it sets that.
            device.remove(stats)
        found.append(ET.tostring(device, encoding="unicode").strip())
    return tuple(found)


def processors(definition: str) -> tuple[str, ...]:
    """Return how many processors a domain has and which are in use, as its XML says.

    libvirt has no event for a processor that is plugged in.  Where they run does not matter.
    """
    root = domainxml.parse(definition)
    vcpu, vcpus = root.find("vcpu"), root.find("vcpus")
    found = []
    if vcpu is not None:
        found += [(vcpu.text or "").strip(), vcpu.get("current", "")]
    if vcpus is not None:
        found.append(ET.tostring(vcpus, encoding="unicode").strip())
    return tuple(found)
