"""Run in the lab: a `take` whose pause has been taken out, to prove that the oracle sees it.

It is snapvm's own take with one thing broken: the domain runs while its disks are snapshotted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from snapvm import consistency
from snapvm.cli.guard import guarded_host
from snapvm.cli.session import Session
from snapvm.consistency import TakeRequest
from snapvm.failures import WindowBroken
from snapvm.host import Host
from snapvm.hypervisor.base import Capture, Freeze
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.hypervisor.libvirtlink import open_link
from snapvm.model import CaptureMethod, Domain, Silent

RUNNING_SECONDS = 1.0


class NoPause:
    """A capture in whose window the domain runs."""

    def __init__(self, capture: Capture, handle: Any) -> None:
        self._capture = capture
        self._handle = handle
        self.method = capture.method

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)

    @contextmanager
    def window(
        self, *, leave_standing: bool = False, freeze: Freeze | None = None
    ) -> Iterator[None]:
        """Let the domain run in the window, and hide that it was noticed."""
        try:
            with self._capture.window(leave_standing=leave_standing, freeze=freeze):
                self._handle.resume()
                time.sleep(RUNNING_SECONDS)
                yield
        except WindowBroken as noticed:
            print(f"noticed, and ignored for the test: {noticed}")


def main(domain: str) -> None:
    """Take a torn snapshot of ``domain``."""
    # libvirt's way: its memory is whole before the domain is let run, so the disks are newer.
    session = Session(overrides={"capture": CaptureMethod.LIBVIRT})
    with guarded_host(session) as host:
        take_torn(host, domain)


class TornHypervisor(LibvirtHypervisor):
    """A libvirt driver whose window is no window."""

    @contextmanager
    def capture(self, domain: Domain, *arguments: Any, **options: Any) -> Iterator[NoPause]:
        """As libvirt's, but for the window."""
        with super().capture(domain, *arguments, **options) as capture:
            yield NoPause(capture, self._link.connection.lookupByName(domain.name))


def take_torn(host: Host, domain: str) -> None:
    """Take it with that driver."""
    settings = host.settings
    torn = replace(host, hypervisor=TornHypervisor(open_link(settings.libvirt_uri), settings))
    print(consistency.take(torn, TakeRequest(domain=domain), Silent()).ref)


if __name__ == "__main__":
    main(sys.argv[1])
