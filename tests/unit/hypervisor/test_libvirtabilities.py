"""A host that cannot do any more what a domain needs is met before anything is ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snapvm.hypervisor import libvirtabilities
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import EMULATOR, IMAGE, OFF, Connection


def having(devices: str = "", outside: str = "") -> str:
    return (
        "<domain type='kvm'><os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>"
        f"<devices><emulator>{EMULATOR}</emulator>{devices}</devices>{outside}</domain>"
    )


LABELLED = having(outside="<seclabel type='dynamic' model='selinux' relabel='yes'/>")
SPICE = having("<graphics type='spice' autoport='yes'/>")


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    ("definition", "why"),
    [
        (LABELLED, "it is labelled for selinux, which libvirt does not use here"),
        (SPICE, "its screen is spice, which QEMU does not have here"),
    ],
)
def test_what_was_switched_off_or_removed_ends_nobody(
    connection: Connection,
    driver: LibvirtHypervisor,
    definition: str,
    why: str,
    image: Path | None,
) -> None:
    """With `selinux=0`, or a QEMU whose SPICE is in a package that is not installed."""
    connection.definition = definition
    with pytest.raises(DomainRefused, match=why) as refused:
        driver.check_restore(OFF, image)
    assert "`virsh" in refused.value.hint()
    connection.labels, connection.screens = ("selinux", "dac"), ("vnc", "spice")
    driver.check_restore(OFF, image)


@pytest.mark.parametrize("of_memory", [False, True])
def test_memory_is_not_given_another_graphics_card(connection: Connection, of_memory: bool) -> None:
    """It was told to name another in the image: QEMU restores none with that, and all is off."""
    cards = "<video><enum name='modelType'><value>vga</value></enum></video>"
    capabilities = f"<domainCapabilities><devices>{cards}</devices></domainCapabilities>"
    definition = having("<video><model type='qxl'/></video>")
    with pytest.raises(DomainRefused, match="its graphics card is qxl") as refused:
        libvirtabilities.require(
            connection, "demo", definition, "name another", capabilities, of_memory=of_memory
        )
    assert ("name another" in refused.value.hint()) is not of_memory


@pytest.mark.parametrize(
    "definition",
    [
        having(outside="<seclabel type='dynamic' model='dac'/><seclabel type='none'/>"),
        having("<graphics type='vnc' port='-1'/><graphics type='of to-morrow'/>"),
        having("<video><model type='qxl'/></video>"),
    ],
)
def test_what_is_there_or_not_said_is_not_in_the_way(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition = definition
    driver.check_restore(OFF, IMAGE)


def test_whom_nothing_confines_needs_no_labels(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    """Of a model that is not there libvirt minds that no more (NEWS 12.3.0): it was refused."""
    connection.definition = having(outside="<seclabel type='none' model='selinux'/>")
    with pytest.raises(DomainRefused, match="labelled for selinux"):
        driver.check_restore(OFF, IMAGE)
    connection.version = 12_003_000
    driver.check_restore(OFF, IMAGE)
    connection.definition = LABELLED
    with pytest.raises(DomainRefused, match="labelled for selinux"):
        driver.check_restore(OFF, IMAGE)


@pytest.mark.parametrize("definition", [LABELLED, SPICE])
def test_a_libvirt_that_cannot_say_is_not_in_the_way(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition, connection.fails = definition, 3
    driver.check_restore(OFF, IMAGE)


def test_libvirt_is_asked_once_what_an_emulator_can_do(
    connection: Connection, driver: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is some 50 KB of XML, made anew each time."""
    connection.definition = having("<graphics type='vnc' port='-1'/>")
    asked: list[object] = []
    tell = connection.getDomainCapabilities

    def count(*machine: Any) -> str:
        asked.append(machine)
        return tell(*machine)

    monkeypatch.setattr(connection, "getDomainCapabilities", count)
    driver.check_restore(OFF, IMAGE)
    assert len(asked) == 1
