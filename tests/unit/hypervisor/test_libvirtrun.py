"""A libvirt domain is captured in the run in which it was found, or not at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.failures import CaptureFailed
from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind, Silent
from snapvm.settings import Settings
from tests.unit.hypervisor.fakelibvirt import LIBVIRT

FOUND = Domain(
    name="demo",
    uuid=DomainUuid("11111111-2222-3333-4444-555555555555"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.RUNNING,
    memory_bytes=1 << 20,
    vcpus=1,
    definition="<domain><devices/></domain>",
    run="id 1",
)


@pytest.mark.parametrize("number", [2, -1], ids=["anew", "off"])
def test_one_that_is_in_another_run_is_not_captured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    """A snapvm killed in the window left that run paused: its journal told of the one before."""
    monkeypatch.setattr(libvirtlink, "libvirt", LIBVIRT)
    handle = SimpleNamespace(ID=lambda: number, name=lambda: FOUND.name)
    link: Any = SimpleNamespace(domain=lambda _uuid: handle)
    driver = LibvirtHypervisor(link, Settings())
    capture = driver.capture(FOUND, tmp_path, image=None, clock=WindowClock(), progress=Silent())
    with pytest.raises(CaptureFailed, match="ended, or was started anew"), capture:
        pytest.fail("the block ran")
