"""A domain with a device that QEMU does not save is refused before anything is done to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import OFF, Connection

SERIAL = """<serial type='pty'>
  <target type='{0}' port='0'><model name='{0}'/></target>
</serial>"""
USUAL = """
<disk type='block'><source dev='/dev/vg/d0'/><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
<input type='tablet' bus='usb'/>
<input type='evdev'><source dev='/dev/input/event1'/></input>
<sound model='ich9'/>
<iommu model='intel'><driver intremap='on' caching_mode='on'/></iommu>
"""


def check(
    driver: LibvirtHypervisor,
    connection: Connection,
    devices: str,
    qemu: int,
    *,
    with_memory: bool = True,
) -> None:
    vars(connection)["getVersion"] = lambda: qemu
    definition = f"<domain type='kvm'><devices>{devices}</devices></domain>"
    domain = replace(OFF, state=DomainState.RUNNING, definition=definition)
    driver.check_capture(domain, with_memory=with_memory)


@pytest.mark.parametrize(
    ("device", "named", "saved_by"),
    [
        ("<disk><target dev='nvme0n1' bus='nvme'/></disk>", "an emulated NVMe disk", 11_000_000),
        ("<sound model='usb'/>", "a sound card on USB", 11_000_000),
        ("<sound model='virtio' streams='2'/>", "a virtio sound card", 11_000_000),
        (
            "<interface type='user'><model type='usb-net'/></interface>",
            "a network card on USB",
            11_000_000,
        ),
        (SERIAL.format("usb-serial"), "a serial port on USB", 11_000_000),
        (
            "<crypto model='virtio' type='qemu'><backend model='builtin'/></crypto>",
            "a virtio crypto device",
            11_000_000,
        ),
        (
            "<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input>",
            "an input device of this host",
            11_000_000,
        ),
        ("<iommu model='amd'><driver intremap='on'/></iommu>", "an AMD IOMMU", 10_001_000),
    ],
)
def test_a_device_that_qemu_does_not_save_pauses_nobody(
    driver: LibvirtHypervisor, connection: Connection, device: str, named: str, saved_by: int
) -> None:
    """QEMU does not tell of it beforehand: each `take` paused the guest for a capture that failed,
    and `doctor` found nothing in the way."""
    with pytest.raises(DomainRefused, match=f"it has {named}") as refused:
        check(driver, connection, device, 10_000_000)
    assert "--disk-only" in refused.value.hint()
    check(driver, connection, device, 10_000_000, with_memory=False)
    check(driver, connection, device, saved_by)


def test_the_usual_devices_are_saved(driver: LibvirtHypervisor, connection: Connection) -> None:
    check(driver, connection, USUAL + SERIAL.format("isa-serial"), 7_002_000)
