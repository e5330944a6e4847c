"""A Xen with one domain that is made to stand still, and the window in which it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from snapvm.clock import WindowClock
from snapvm.hypervisor import xenrequest
from snapvm.hypervisor.xendomaininfo import DomainInfo
from snapvm.hypervisor.xenlib import XenFailed
from snapvm.hypervisor.xenstandstill import Standstill
from snapvm.hypervisor.xenstore import XenStore
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind
from tests.fakes.xenstored import FakeXenstored

DOMID = 7
REQUEST = f"/local/domain/{DOMID}/control/shutdown"
NOTE = f"/libxl/{DOMID}/snapvm-suspend"
SUSPENDED = 4 | 2 << 16


@dataclass
class FakeXen:
    """Stands for ``XenControl``, with one domain."""

    flags: int = 0
    pauses: int = 0
    gone: bool = False
    deeds: list[str] = field(default_factory=list)
    resume_fails: int = 0
    is_about_to_suspend: bool = False
    """It does so when it is let run."""
    obeys: bool = True
    """Whether the guest can be asked to suspend itself."""
    libraries: Any = field(default_factory=lambda: SimpleNamespace(major=4, minor=20))

    def suspends_itself(self, _domid: int) -> bool:
        return self.obeys

    def suspend(self, _domid: int) -> None:
        self.deeds.append("suspend")
        self.flags |= SUSPENDED

    def info(self, domid: int) -> DomainInfo | None:
        if self.gone:
            return None
        return DomainInfo(
            domid=domid,
            uuid="u",
            flags=self.flags | (8 if self.pauses else 0),
            total_pages=1,
            shared_info_mfn=1,
            max_vcpu_id=0,
            emulated=0,
        )

    def pause(self, _domid: int) -> None:
        if self.gone:
            raise XenFailed("pausing: No such process")
        self.deeds.append("pause")
        self.pauses += 1

    def unpause(self, _domid: int) -> None:
        self.deeds.append("unpause")
        self.pauses -= 1
        if self.is_about_to_suspend and not self.pauses:
            self.is_about_to_suspend, self.flags = False, SUSPENDED

    def resume(self, _domid: int) -> None:
        if self.resume_fails:
            self.resume_fails -= 1
            raise XenFailed("not now")
        self.deeds.append("resume")
        self.flags = 0


@dataclass
class Scene:
    xen: FakeXen
    store: FakeXenstored
    connection: XenStore
    standstill: Standstill
    clock: WindowClock

    def guest_suspends(self, flags: int = SUSPENDED) -> None:
        """Let the guest answer a request."""

        def answer(path: str, value: str) -> None:
            if path == REQUEST and value == "suspend":
                self.store.set(REQUEST, "")
                self.xen.flags = flags

        self.store.on_write = answer


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(xenrequest, "ACKNOWLEDGE_SECONDS", 0.1)
    monkeypatch.setattr(xenrequest, "STOP_SECONDS", 0.1)
    xen: Any = FakeXen()
    server, clock = FakeXenstored(), WindowClock()
    domain = Domain(
        name="web",
        uuid=DomainUuid("u"),
        hypervisor=HypervisorKind.XEN,
        state=DomainState.RUNNING,
        memory_bytes=1,
        vcpus=1,
        definition="",
    )
    with server.connected() as store:
        yield Scene(xen, server, store, Standstill(domain, DOMID, xen, store, clock), clock)


def runs(scene: Scene) -> bool:
    values = scene.store.values
    stands = scene.xen.flags or scene.xen.pauses or values.get(REQUEST) or NOTE in values
    return not stands
