"""A device of the host, or a place to listen at, that a start would miss is missed beforehand."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import hostdevices, libvirtneeds
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import IMAGE, OFF, Connection

STICK = "<vendor id='0x0951'/><product id='0x1666'/>"
CARD = "<address {}domain='0x0000' bus='0x06' slot='0x02' function='0x1'/>"
MDEV = "<address uuid='C2177883-f1bb-47f0-914d-32a22e3a8804'/>"


@pytest.fixture(autouse=True)
def buses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that has nothing on its buses yet."""
    monkeypatch.setattr(hostdevices, "BUSES", tmp_path / "bus")
    monkeypatch.setattr(libvirtneeds, "HOOKS", (tmp_path / "hook",))
    hub = tmp_path / "bus/usb/devices/usb1"
    hub.mkdir(parents=True)
    (tmp_path / "bus/usb/devices/1-0:1.0").mkdir()
    return tmp_path / "bus"


def plug(buses: Path) -> None:
    (stick := buses / "usb/devices/1-4").mkdir()
    for name, text in (("idVendor", "0951"), ("idProduct", "1666"), ("busnum", "1")):
        (stick / name).write_text(f"{text}\n")
    (stick / "devnum").write_text("13\n")
    (buses / "pci/devices/0000:06:02.1").mkdir(parents=True)
    (buses / "mdev/devices/c2177883-f1bb-47f0-914d-32a22e3a8804").mkdir(parents=True)


def given(kind: str, source: str, policy: str = "") -> str:
    outer = f"hostdev mode='subsystem' type='{kind}'" if kind != "interface" else kind
    inner = f"<source{policy}>{source}</source>"
    if kind == "interface":
        return f"<domain><devices><interface type='hostdev'>{inner}</interface></devices></domain>"
    return f"<domain><devices><{outer}>{inner}</hostdev></devices></domain>"


@pytest.mark.parametrize(
    ("definition", "name"),
    [
        (given("usb", STICK), "USB device 0951:1666"),
        (given("usb", STICK, " startupPolicy='mandatory'"), "USB device 0951:1666"),
        (given("usb", "<address bus='1' device='13'/>"), "USB device at bus 1 device 13"),
        (given("pci", CARD.format("")), "PCI device 0000:06:02.1"),
        (given("interface", CARD.format("type='pci' ")), "PCI device 0000:06:02.1"),
        (given("mdev", MDEV), "mediated device c2177883-"),
    ],
)
def test_nothing_is_ended_for_a_boot_that_would_miss_a_device(
    connection: Connection, driver: LibvirtHypervisor, buses: Path, definition: str, name: str
) -> None:
    connection.definition = definition
    with pytest.raises(DomainRefused, match=f"this host has no {name}") as refused:
        driver.check_restore(OFF, None)
    assert "`virsh edit 'my web'`" in refused.value.hint()
    plug(buses)
    driver.check_restore(OFF, None)


@pytest.mark.parametrize(
    "definition",
    [
        given("usb", STICK, " startupPolicy='optional'"),
        given("usb", "<vendor id='x'/><product id=''/>"),
        given("usb", ""),
        given("pci", "<address domain='none'/>"),
        given("scsi", "<adapter name='scsi_host0'/>"),
    ],
)
def test_what_is_dispensable_or_not_understood_is_left_to_libvirt(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition = definition
    driver.check_restore(OFF, None)


def test_a_hook_may_make_it(
    connection: Connection, driver: LibvirtHypervisor, tmp_path: Path
) -> None:
    connection.definition = given("mdev", MDEV)
    (tmp_path / "hook").touch()
    driver.check_restore(OFF, None)


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def screen(port: int | str, address: str = "127.0.0.1", rest: str = "autoport='no'") -> str:
    return (
        f"<domain><devices><graphics type='vnc' port='{port}' {rest} listen='{address}'>"
        f"<listen type='address' address='{address}'/></graphics></devices></domain>"
    )


def console(port: int) -> str:
    source = f"<source mode='bind' host='127.0.0.1' service='{port}'/>"
    return f"<domain><devices><serial type='tcp'>{source}</serial></devices></domain>"


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize("kind", ["vnc", "spice", "websocket", "serial"])
def test_nothing_is_ended_for_a_start_that_could_not_listen(
    connection: Connection, driver: LibvirtHypervisor, taken: int, image: Path | None, kind: str
) -> None:
    """A clone of it has the same port, and was started since."""
    connection.definition = {
        "vnc": screen(taken),
        "spice": screen(-1, rest=f"tlsPort='{taken}'"),
        "websocket": screen(-1, rest=f"autoport='yes' websocket='{taken}'"),
        "serial": console(taken),
    }[kind]
    with pytest.raises(DomainRefused, match=f"127.0.0.1 port {taken}, and something") as refused:
        driver.check_restore(OFF, image)
    assert "`ss -ltnp`" in refused.value.hint()
    for state in (DomainState.RUNNING, DomainState.SUSPENDED, DomainState.CRASHED):
        itself = replace(OFF, state=state, definition=connection.definition)
        driver.check_restore(itself, image)


def test_a_screen_at_an_address_of_another_host_is_refused(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.definition = screen(5901, "192.0.2.7")
    with pytest.raises(DomainRefused, match="this host has no such address"):
        driver.check_restore(OFF, IMAGE)


def test_a_port_that_libvirt_chooses_or_nobody_has(
    connection: Connection, driver: LibvirtHypervisor, taken: int
) -> None:
    local = "<listen type='socket' socket='/run/it'/>"
    for definition in (
        screen(taken, rest="autoport='yes'"),
        screen(-1),
        screen(taken, "my-host"),
        screen(99999),
        screen(taken).replace("<listen type='address' address='127.0.0.1'/>", local),
    ):
        connection.definition = definition
        driver.check_restore(OFF, IMAGE)
        driver.check_restore(OFF, None)


def test_a_port_that_libvirt_chose_for_the_domain_is_its_own(
    connection: Connection, driver: LibvirtHypervisor, taken: int
) -> None:
    connection.definition = screen(taken)
    chosen = screen(taken, rest="autoport='yes'")
    everywhere = screen(taken, "0.0.0.0")
    for definition in (chosen, everywhere):
        driver.check_restore(replace(OFF, state=DomainState.PAUSED, definition=definition), IMAGE)
