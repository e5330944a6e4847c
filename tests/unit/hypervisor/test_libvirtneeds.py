"""What libvirt needs for the start, and has not any more, is met before anything is ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import EMULATOR, IMAGE, OFF, Connection


def needing(
    *networks: str,
    kind: str = "kvm",
    machine: str = "machine='pc-q35-10.0'",
    emulator: str = EMULATOR,
) -> str:
    interfaces = "".join(
        f"<interface type='network'><source network='{network}'/></interface>"
        for network in networks
    )
    return (
        f"<domain type='{kind}'><os><type arch='x86_64' {machine}>hvm</type></os><devices>"
        f"<emulator>{emulator}</emulator>{interfaces}"
        "<interface type='bridge'><source bridge='br0'/></interface></devices></domain>"
    )


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    ("definition", "why", "remedy"),
    [
        (needing(machine="machine='pc-q35-2.4'"), "'pc-q35-2.4' is not", "type (pc-q35-2.4)"),
        (needing(kind="qemu"), "'pc-q35-10.0' is not", "type (pc-q35-10.0)"),
        (needing(emulator="/gone/qemu"), "Cannot check QEMU binary /gone/qemu", "install a QEMU"),
        (needing("on", "my lan"), "its network my lan is not active", "`virsh net-start 'my lan'`"),
        (needing("none"), "its network none is not there", "`virsh net-define FILE`"),
    ],
)
def test_nothing_is_ended_for_a_start_that_libvirt_could_not_make(
    connection: Connection,
    driver: LibvirtHypervisor,
    definition: str,
    why: str,
    remedy: str,
    image: Path | None,
) -> None:
    connection.networks = {"on": True, "my lan": False}
    connection.definition = definition
    with pytest.raises(DomainRefused, match=f"it would not start: .*{why}") as refused:
        driver.check_restore(OFF, image)
    hint = refused.value.hint()
    edit = "`virsh save-image-edit '/images/my memory.save'`" if image else "`virsh edit 'my web'`"
    assert remedy in hint and (edit in hint or "net-start 'my lan'" in hint)


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    "definition",
    [
        needing("on", "on"),
        needing(kind="qemu", machine="machine='pc'"),
        needing(machine="", emulator=""),
        needing().replace("<source bridge='br0'/>", "<source/>"),
    ],
)
def test_one_that_libvirt_can_start_is_not_held_up(
    connection: Connection, driver: LibvirtHypervisor, definition: str, image: Path | None
) -> None:
    connection.networks = {"on": True}
    connection.definition = definition
    driver.check_restore(OFF, image)


@pytest.mark.parametrize("code", [3, 88])
def test_a_libvirt_that_cannot_say_may_start_it_all_the_same(
    connection: Connection, driver: LibvirtHypervisor, code: int
) -> None:
    """It does not implement it (VIR_ERR_NO_SUPPORT), or may not tell us (VIR_ERR_ACCESS_DENIED)."""
    connection.fails = code
    connection.definition = needing("none", machine="machine='pc-q35-2.4'")
    driver.check_restore(OFF, IMAGE)
    driver.check_restore(OFF, None)
