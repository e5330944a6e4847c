"""A libvirt domain that is captured, as far as it is asked; it is paused and resumed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Self

from snapvm.hypervisor.libvirtlink import LibvirtFailed
from snapvm.hypervisor.runevents import RunEvents
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind

RUNNING, PAUSED, SHUT_OFF, CRASHED, ASLEEP = 1, 3, 5, 6, 7
NOT_RUNNING = LibvirtFailed("Requested operation is not valid: domain is not running", 55)
NO_DOMAIN = LibvirtFailed("Domain not found", 42)
DEFINITION = """<domain id='3'>
  <name>demo</name>
  <currentMemory unit='KiB'>524288</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <vcpus>
    <vcpu id='0' enabled='yes' hotpluggable='no' order='1'/>
    <vcpu id='1' enabled='yes' hotpluggable='yes' order='2'/>
    <vcpu id='2' enabled='no' hotpluggable='yes'/>
    <vcpu id='3' enabled='no' hotpluggable='yes'/>
  </vcpus>
  <devices>
    <disk type='block' device='disk'><source dev='/dev/vg/d0'/><target dev='vda'/></disk>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/></interface>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
    </channel>
    <memory model='virtio-mem'>
      <target><size unit='KiB'>2097152</size><current unit='KiB'>524288</current></target>
    </memory>
  </devices>
</domain>"""
DOMAIN = Domain(
    name="demo",
    uuid=DomainUuid("0f7ed0f5-4e0c-4b0f-8f0c-000000000001"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.RUNNING,
    memory_bytes=512 << 20,
    vcpus=1,
    definition=DEFINITION,
)


@dataclass
class FakeHandle:
    """A libvirt domain, as far as it is asked; a look-up finds what it is now."""

    number: int = 3
    definition: str = DEFINITION
    job: int = 0
    now: list[Self] = field(default_factory=list)

    def connect(self) -> Self:
        return self

    def lookupByUUIDString(self, _uuid: str) -> Self:  # noqa: N802 - libvirt's name
        return self.now[-1] if self.now else self

    def ID(self) -> int:  # noqa: N802 - libvirt's name
        return self.number

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's name
        return [self.job]

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return self.definition


def happened(events: RunEvents, name: str) -> None:
    seconds = time.time()
    events.on_event(None, None, name, int(seconds), int(seconds % 1 * 1e6), None, None)


@dataclass
class FakeDomain(FakeHandle):
    """A domain that is paused and resumed, and is gone when no state is left."""

    state_now: int | None = RUNNING
    events: RunEvents = field(default_factory=RunEvents)
    asked: int = 0
    run_state: str = "paused"
    """QEMU's name for why it stands still."""
    deaf: int = 0
    """How often a libvirtd that is just restarted answers nobody."""

    def state(self) -> list[int]:
        self.asked += 1
        if self.state_now is None:
            raise NO_DOMAIN
        return [self.state_now]

    def suspend(self) -> None:
        self.state_now = PAUSED
        happened(self.events, "STOP")

    def resume(self) -> None:
        if self.state_now != PAUSED:
            raise NOT_RUNNING
        self.state_now = RUNNING
        happened(self.events, "RESUME")

    def answer(self) -> str:
        """What QEMU says when it is asked what the guest does."""
        status = "running" if self.state_now == RUNNING else self.run_state
        return json.dumps({"return": {"status": status}})

    def let_go(self) -> None:
        """What QEMU is told first: its monitor is gone with it."""
        if self.deaf:
            self.deaf -= 1
            raise LibvirtFailed("client socket is closed", 38)
        if self.state_now not in (RUNNING, PAUSED, ASLEEP):
            raise NOT_RUNNING
