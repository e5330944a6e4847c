"""What libvirt needs for the start, and has not any more, is met before anything is ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm.hypervisor import libvirtneeds
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import EMULATOR, IMAGE, OFF, Connection


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with one bridge; returned is where its hook of libvirt would be."""
    hook = tmp_path / "qemu"
    monkeypatch.setattr(libvirtneeds, "HOOKS", (hook,))

    def index(name: str) -> int:
        if name != "br0":
            raise OSError("no interface with this name")
        return 4

    monkeypatch.setattr("socket.if_nametoindex", index)
    return hook


def upon(kind: str, named: str, inner: str = "") -> str:
    """Return a domain with an interface upon a device of the host."""
    interface = f"<interface type='{kind}'><source {named}/>{inner}</interface>"
    return f"<domain><devices>{interface}</devices></domain>"


def stored(pool: str, device: str = "disk", policy: str = "") -> str:
    """Return a domain with a disk that is a volume of a pool."""
    return (
        f"<domain><devices><disk type='volume' device='{device}'>"
        f"<source pool='{pool}' volume='d0'{policy}/><target dev='sda'/></disk></devices></domain>"
    )


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
        (upon("bridge", "bridge='br1'"), "no network device br1", "`ip link`"),
        (upon("direct", "dev='eno1' mode='bridge'"), "no network device eno1", "`ip link`"),
        (stored("my pool"), "its storage pool my pool is not active", "pool-start 'my pool'`"),
        (stored("none", "cdrom"), "its storage pool none is not there", "`virsh pool-define FILE`"),
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
    connection.pools = {"my pool": False}
    connection.definition = definition
    with pytest.raises(DomainRefused, match=f"it would not start: .*{why}") as refused:
        driver.check_restore(OFF, image)
    hint = refused.value.hint()
    edit = "`virsh save-image-edit '/images/my memory.save'`" if image else "`virsh edit 'my web'`"
    assert remedy in hint and (edit in hint or "-start 'my " in hint)


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    "definition",
    [
        needing("on", "on"),
        needing(kind="qemu", machine="machine='pc'"),
        needing(machine="", emulator=""),
        needing().replace("<source bridge='br0'/>", "<source/>"),
        upon("bridge", "bridge='ovs'", "<virtualport type='openvswitch'/>"),
        upon("ethernet", "dev='gone'"),
        stored("on"),
        stored("none", "cdrom", " startupPolicy='optional'"),
    ],
)
def test_one_that_libvirt_can_start_is_not_held_up(
    connection: Connection, driver: LibvirtHypervisor, definition: str, image: Path | None
) -> None:
    connection.networks = connection.pools = {"on": True}
    connection.definition = definition
    driver.check_restore(OFF, image)


def test_a_bridge_that_a_hook_may_make_is_not_missed(
    connection: Connection, driver: LibvirtHypervisor, host: Path
) -> None:
    connection.definition = upon("bridge", "bridge='br1'")
    host.touch()
    driver.check_restore(OFF, IMAGE)


@pytest.mark.parametrize("code", [3, 88])
def test_a_libvirt_that_cannot_say_may_start_it_all_the_same(
    connection: Connection, driver: LibvirtHypervisor, code: int
) -> None:
    """It does not implement it (VIR_ERR_NO_SUPPORT), or may not tell us (VIR_ERR_ACCESS_DENIED)."""
    connection.fails = code
    for definition in (needing("none", machine="machine='pc-q35-2.4'"), stored("none")):
        connection.definition = definition
        driver.check_restore(OFF, IMAGE)
        driver.check_restore(OFF, None)
