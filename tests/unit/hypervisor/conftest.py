"""The driver for libvirt on a libvirt that is not there."""

from __future__ import annotations

import pytest

from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.settings import Settings
from tests.unit.hypervisor.fakelibvirt import LIBVIRT, Connection


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    return Connection()


@pytest.fixture
def driver(connection: Connection) -> LibvirtHypervisor:
    link = type("Link", (), {"connection": connection, "domain": libvirtlink.Link.domain})()
    return LibvirtHypervisor(link, Settings())
