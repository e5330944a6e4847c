"""Sees what somebody else did to a domain while it was captured: such a set is thrown away.

libvirt knows nothing of the window: it lets anybody resume, reset or destroy a suspended domain,
plug a device into it or begin a save.  QEMU's and libvirt's own events tell of it, also of what was
done and taken back; the rest is seen by comparing what there was with what there is.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from snapvm.failures import WindowBroken
from snapvm.hypervisor import domainxml
from snapvm.hypervisor.libvirtlink import LibvirtFailed, RunEvents, is_busy, looked_up_again, spoken
from snapvm.model import Domain

_XML_SECURE = 1
_AT_ANY_TIME = {
    "DEVICE_ADDED": "a device was plugged in",
    "DEVICE_DELETED": "a device was unplugged",
}
"""From the plan on: the image's description of the domain would not be that of its memory."""
_STANDING_STILL = {
    "RESET": "somebody reset it",
    "SHUTDOWN": "somebody shut it off",
    "BLOCK_IO_ERROR": "a disk of it reported an error",
}
WATCHED = (*_AT_ANY_TIME, *_STANDING_STILL)
"""What has to be listened to, beside STOP and RESUME."""


class Witness:
    """What a domain was when its capture began."""

    def __init__(self, domain: Domain, handle: Any, events: RunEvents) -> None:
        self._domain = domain
        self._handle = handle
        self._events = events
        self._first = len(events.seen())
        self._run = handle.ID()

    def check(self, *, stopped_at: float | None) -> None:
        """Raise ``WindowBroken`` when somebody else had it in hand since."""
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
        """Say what is not as it was, or return an empty text."""
        now = looked_up_again(self._handle, self._domain.uuid)
        if now.ID() != self._run:
            return "somebody started it anew"
        if is_busy(now):
            return "somebody began to save or to migrate it"
        definition = now.XMLDesc(_XML_SECURE)
        if devices(definition) != devices(self._domain.definition):
            return "its devices were changed"
        if processors(definition) != processors(self._domain.definition):
            return "its processors were changed"
        return ""

    def _broken(self, what: str) -> WindowBroken:
        return WindowBroken(domain=self._domain.name, what=what)


def devices(definition: str) -> tuple[str, ...]:
    """Return each device of a domain as text, without what the guest changes by itself."""
    found = []
    for device in domainxml.parse(definition).iterfind("./devices/*"):
        for target in device.iterfind("target[@state]"):
            # Whether the guest's agent has opened its channel (libvirt, docs/formatdomain).
            del target.attrib["state"]
        for target in device.iterfind("target[@tray]"):
            # The guest opens it when it ejects a medium.
            del target.attrib["tray"]
        for target in device.iterfind("target[current]"):
            # How much of the memory it was offered the guest has taken; libvirt reads no such thing
            # from an image (domain_conf.c, virDomainMemoryTargetDefParseXML).
            for current in target.findall("current"):
                target.remove(current)
        found.append(ET.tostring(device, encoding="unicode").strip())
    return tuple(found)


def processors(definition: str) -> tuple[str, ...]:
    """Return what a domain's XML says of how many processors there are, and which are in use.

    libvirt has no event for one that is plugged in; where they are placed does not matter.
    """
    root = domainxml.parse(definition)
    vcpu, vcpus = root.find("vcpu"), root.find("vcpus")
    found = []
    if vcpu is not None:
        found += [(vcpu.text or "").strip(), vcpu.get("current", "")]
    if vcpus is not None:
        found.append(ET.tostring(vcpus, encoding="unicode").strip())
    return tuple(found)
