"""Tells when a domain begins to stand still, to run and to be off: a line each, with the time.

``python3 -m tests.lab.host.running NAME``; on libvirt by its events, on Xen, where NAME is the only
domain there is, by looking every few milliseconds.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import libvirt

from snapvm.hypervisor.xencontrol import open_control
from tests.lab.host.places import on_xen
from tests.lab.host.watcher import OFF, RUNS, STANDS

LOOK_SECONDS: Final = 0.01
_STATES = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: STANDS,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: RUNS,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: OFF,
}


def main() -> None:
    """Watch until killed."""
    if on_xen():
        _watch_xen()
    else:
        _watch_libvirt(sys.argv[1])


def _tell(state: str) -> None:
    print(f"{time.time():.4f} {state}", flush=True)


def _watch_libvirt(name: str) -> None:
    def on_event(_link: Any, _domain: Any, event: int, _detail: int, _own: Any) -> None:
        if event in _STATES:
            _tell(_STATES[event])

    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open("qemu:///system")
    kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
    domain = connection.lookupByName(name)
    connection.domainEventRegisterAny(domain, kind, on_event, None)
    _tell(RUNS if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING else STANDS)
    while True:
        libvirt.virEventRunDefaultImpl()


def _watch_xen() -> None:
    last = ""
    with open_control() as control:
        while True:
            guests = [info for info in control.domains() if info.domid and not info.is_dying]
            stands = any(info.is_paused or info.is_shut_down for info in guests)
            state = STANDS if stands else RUNS if guests else OFF
            if state != last:
                _tell(state)
            last = state
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
