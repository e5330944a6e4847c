"""What somebody else did to a domain while it was captured is seen, and nothing else is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Self

import pytest

from snapvm.failures import WindowBroken
from snapvm.hypervisor.libvirtlink import RunEvents
from snapvm.hypervisor.witness import WATCHED, Witness, devices, processors
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind

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
PLUGGED = DEFINITION.replace(
    "</devices>", "<disk type='block'><target dev='vdb'/></disk></devices>"
)
OTHER_PROCESSOR = DEFINITION.replace(
    "<vcpu id='2' enabled='no' hotpluggable='yes'/>",
    "<vcpu id='2' enabled='yes' hotpluggable='yes' order='3'/>",
).replace("id='1' enabled='yes' hotpluggable='yes' order='2'", "id='1' enabled='no'")
"""As many as before, but not the same."""


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


@pytest.fixture
def events() -> RunEvents:
    return RunEvents()


def test_nobody_did_anything(events: RunEvents) -> None:
    happened(events, "RESET")
    Witness(DOMAIN, FakeHandle(), events).check(stopped_at=0.0)


@pytest.mark.parametrize("name", WATCHED)
def test_an_event_in_the_window(events: RunEvents, name: str) -> None:
    witness = Witness(DOMAIN, FakeHandle(), events)
    stopped_at = time.monotonic() - 1
    happened(events, name)
    with pytest.raises(WindowBroken, match="demo did not stand still"):
        witness.check(stopped_at=stopped_at)


def test_a_guest_that_reset_itself_before_the_window_is_well(events: RunEvents) -> None:
    witness = Witness(DOMAIN, FakeHandle(), events)
    happened(events, "RESET")
    witness.check(stopped_at=time.monotonic() + 1)


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (FakeHandle(number=4), "started it anew"),
        (FakeHandle(job=1), "save or to migrate"),
        (FakeHandle(definition=PLUGGED), "devices were changed"),
        (FakeHandle(definition=DEFINITION.replace(" current='2'", "")), "processors were changed"),
        (FakeHandle(definition=DEFINITION.replace("'2'>4", "'3'>4")), "processors were changed"),
        (FakeHandle(definition=OTHER_PROCESSOR), "processors were changed"),
    ],
)
def test_what_is_not_as_it_was(events: RunEvents, now: FakeHandle, what: str) -> None:
    handle = FakeHandle()
    witness = Witness(DOMAIN, handle, events)
    handle.now.append(now)
    with pytest.raises(WindowBroken, match=what):
        witness.check(stopped_at=None)


def test_what_the_guest_does_by_itself_is_no_change() -> None:
    """Its agent opens and closes its channel; its balloon moves; the host places it elsewhere.

    It takes memory that it was offered, piece by piece (virtio-mem).
    """
    later = DEFINITION.replace("state='connected'", "state='disconnected'")
    later = later.replace("524288", "262144").replace("placement=", "cpuset='0-1' placement=")
    assert devices(later) == devices(DEFINITION) != devices(PLUGGED)
    assert devices(later.replace("2097152", "4194304")) != devices(DEFINITION)
    assert processors(later) == processors(DEFINITION)
    assert devices(replace(DOMAIN, definition=PLUGGED).definition) == devices(PLUGGED)


def test_a_guest_may_eject_what_is_in_its_drive() -> None:
    """A take of an installer that had just ended was thrown away."""
    drive = "<domain><devices><disk device='cdrom'><target dev='sda'{}/></disk></devices></domain>"
    assert devices(drive.format(" tray='open'")) == devices(drive.format(""))
