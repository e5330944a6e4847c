"""Run in the lab: SIGKILL a `snapvm take` the moment its domain stands still.

Prints how many milliseconds later the domain ran again; exits with 1 when it did not within ten
seconds.  The events are libvirt's own, so the moment is hit and not guessed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import libvirt

SUSPENDED, RESUMED = 3, 4
"""virDomainEventType (libvirt/libvirt-domain.h)."""
LIMIT_SECONDS = 10.0


class Watch:
    """Kills the command when the domain is suspended, and tells when it was resumed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.killed_at = 0.0
        self.resumed_at = 0.0
        self.resumed = threading.Event()

    def on_event(self, _link: Any, _domain: Any, event: int, _detail: int, _own: Any) -> None:
        """Take a lifecycle event."""
        if event == SUSPENDED and self.process is not None and not self.killed_at:
            os.kill(self.process.pid, signal.SIGKILL)
            self.killed_at = time.monotonic()
        elif event == RESUMED and self.killed_at:
            self.resumed_at = time.monotonic()
            self.resumed.set()


def main(domain: str) -> None:
    """Start, kill, measure."""
    libvirt.virEventRegisterDefaultImpl()
    connection = libvirt.open("qemu:///system")
    threading.Thread(target=_loop, daemon=True).start()
    watch = Watch()
    connection.domainEventRegisterAny(
        connection.lookupByName(domain), libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, watch.on_event, None
    )
    watch.process = subprocess.Popen(["snapvm", "take", domain])
    watch.process.wait(240)
    if not watch.killed_at:
        sys.exit("the domain was never seen standing still")
    if not watch.resumed.wait(LIMIT_SECONDS):
        sys.exit("the domain is still paused")
    print(f"{(watch.resumed_at - watch.killed_at) * 1000:.0f}")


def _loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main(sys.argv[1])
