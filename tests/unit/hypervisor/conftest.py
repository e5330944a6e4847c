"""The drivers, on a libvirt and on a Xen that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.hypervisor import libvirtbackground, libvirtlink, qmp, userfault
from snapvm.hypervisor.capturejob import CaptureJob
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.hypervisor.pause import WatchedPause
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.model import Silent
from snapvm.settings import Settings
from tests.fakes.xenstored import FakeXenstored
from tests.unit.hypervisor import fakemonitor
from tests.unit.hypervisor.eagerqemu import RUN, EagerQemu
from tests.unit.hypervisor.fakedomain import DOMAIN
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, Connection
from tests.unit.hypervisor.fakexen import FakeXen, Scene


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    return Connection()


@pytest.fixture
def driver(connection: Connection) -> LibvirtHypervisor:
    link = type("Link", (), {"connection": connection, "domain": libvirtlink.Link.domain})()
    return LibvirtHypervisor(link, Settings())


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A Xen with one domain that runs, and the driver for it."""
    server = FakeXenstored()
    xen: Any = FakeXen(server)
    xen.come()
    with server.connected() as store:
        yield xen, XenHypervisor(xen, store, xen, Settings())


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> EagerQemu:
    """A domain whose QEMU makes background snapshots."""
    fake = EagerQemu()
    monkeypatch.setattr(qmp, "libvirt_qemu", fake)
    monkeypatch.setattr(libvirtlink, "libvirt", SimpleNamespace(libvirtError=OSError))
    monkeypatch.setattr(userfault, "allowed", lambda _folder: nullcontext())
    monkeypatch.setattr(libvirtbackground, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(libvirtbackground, "ASK_SECONDS", 0.0)
    return fake


@pytest.fixture
def monitor() -> fakemonitor.FakeQemu:
    return fakemonitor.FakeQemu()


@pytest.fixture
def job(qemu: EagerQemu, monitor: fakemonitor.FakeQemu, tmp_path: Path) -> CaptureJob:
    """The capture of that domain."""
    clock = WindowClock()
    lender = fakemonitor.lender(monitor, tmp_path, run=RUN)
    return CaptureJob(
        domain=DOMAIN,
        handle=qemu,
        lender=lender,
        pause=WatchedPause(DOMAIN, qemu, qemu.events, clock),
        folder=tmp_path,
        run_dir=tmp_path,
        clock=clock,
        progress=Silent(),
        limit_seconds=30,
        window_limit_seconds=30,
        precopy_limit_seconds=30,
    )
