"""The drivers, on a libvirt and on a Xen that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.hypervisor.xen import XenHypervisor
from snapvm.settings import Settings
from tests.fakes.xenstored import FakeXenstored
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
