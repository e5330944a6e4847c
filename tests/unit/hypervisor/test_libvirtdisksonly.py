"""The disks of a domain that is off are of one instant only as long as nobody starts it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from snapvm.failures import WindowBroken
from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirtdisksonly import OffCapture
from tests.unit.hypervisor.fakedomain import DOMAIN
from tests.unit.hypervisor.fakelibvirt import LIBVIRT


@pytest.fixture(autouse=True)
def _libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)


def test_one_that_stays_off_is_captured() -> None:
    capture = OffCapture(DOMAIN, SimpleNamespace(isActive=lambda: 0))
    with capture.window():
        capture.arm()


def test_one_that_is_started_while_its_disks_are_snapshotted_is_not() -> None:
    """Cron or a cluster may start it; one snapshot would be of before, another of its boot."""
    started = [0]
    capture = OffCapture(DOMAIN, SimpleNamespace(isActive=lambda: started[0]))
    with pytest.raises(WindowBroken, match="somebody started it"), capture.window():
        started[0] = 1
