"""Measures how long a libvirt domain stands still while a command runs, and what the command needs.

``python3 -m tests.lab.host.qemustanding NAME COMMAND...`` prints a line of JSON: milliseconds in
which QEMU ran no CPU of the domain, by its own STOP and RESUME events, seconds of the command, its
peak memory, and what it said.  A command may end the domain and start it again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import libvirt
import libvirt_qemu

LATE_SECONDS = 0.5
"""How long an event may be under way when the command has ended."""


class Standing:
    """Adds up what lies between a STOP, or the domain's end, and the next RESUME."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def on_event(
        self, _link: Any, _dom: Any, name: str, seconds: int, micros: int, _more: Any, _own: Any
    ) -> None:
        """Take an event, with the time at which QEMU sent it."""
        at = seconds + micros / 1e6
        if name == "STOP":
            self._stands(at)
        elif name == "RESUME" and self._since is not None:
            self.seconds += at - self._since
            self._since = None

    def on_lifecycle(self, _link: Any, _dom: Any, event: int, _detail: int, _own: Any) -> None:
        """Take an event of libvirt: a QEMU that is ended sends no STOP."""
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._stands(time.time())

    def _stands(self, at: float) -> None:
        if self._since is None:
            self._since = at


def main() -> None:
    """Run the command and listen beside it."""
    name, command = sys.argv[1], sys.argv[2:]
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open("qemu:///system")
    threading.Thread(target=_listen, daemon=True).start()
    standing = Standing()
    domain = connection.lookupByName(name)
    for event in ("STOP", "RESUME"):
        libvirt_qemu.qemuMonitorEventRegister(connection, domain, event, standing.on_event, None, 0)
    connection.domainEventRegisterAny(
        domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, standing.on_lifecycle, None
    )
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    # wait4 tells of this child and of what it waited for.
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begun
    time.sleep(LATE_SECONDS)
    print(
        json.dumps(
            {
                "standing_ms": standing.seconds * 1000,
                "seconds": seconds,
                "peak_mb": used.ru_maxrss * 1024 / 1e6,
                "said": said,
            }
        )
    )
    sys.exit(os.waitstatus_to_exitcode(status))


def _listen() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main()
