"""What libvirt needs for the start, and has not any more, is met before anything is ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import hugepages, libvirtneeds
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.unit.hypervisor.fakelibvirt import EMULATOR, IMAGE, OFF, Connection, Secret


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


def stored(pool: str, device: str = "disk", policy: str = "", volume: str = "d0") -> str:
    """Return a domain with a disk that is a volume of a pool."""
    return (
        f"<domain><devices><disk type='volume' device='{device}'>"
        f"<source pool='{pool}' volume='{volume}'{policy}/><target dev='sda'/></disk>"
        "</devices></domain>"
    )


def filtered(name: str) -> str:
    """Return a domain with a filter before its interface."""
    interface = f"<interface type='user'><filterref filter='{name}'/></interface>"
    return f"<domain><devices>{interface}</devices></domain>"


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
        (
            stored("on", volume="d7"),
            "its storage pool on has no volume d7",
            "`virsh pool-refresh on`",
        ),
        (filtered("a b"), "its network filter a b is not there", "`virsh nwfilter-define FILE`"),
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
    connection.pools = {"my pool": False, "on": True}
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
        filtered("clean-traffic"),
        stored("on", "cdrom", " startupPolicy='optional'", "d7"),
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


def encrypted(named: str) -> str:
    """Return a domain with a disk that needs a secret."""
    secret = f"<encryption format='luks'><secret type='passphrase' {named}/></encryption>"
    return (
        f"<domain><devices><disk type='block'><source dev='/dev/vg/d0'>{secret}</source>"
        "<target dev='vda'/></disk></devices></domain>"
    )


def served(kind: str, named: str) -> str:
    """Return a domain with a cdrom of a server that wants to know who asks."""
    auth = f"<auth username='me'><secret type='{kind}' {named}/></auth>"
    return (
        f"<domain><devices><disk type='network' device='cdrom'>{auth}<source name='x'/>"
        "<target dev='sda'/></disk></devices></domain>"
    )


VTPM = "<tpm><backend type='emulator'><encryption secret='{}'/></backend></tpm>"
SEALED = f"<domain><devices>{VTPM}</devices></domain>"
SECRETS = (
    Secret("whole"),
    Secret("private", fails=65),
    Secret("ephemeral", fails=66),
    Secret("4", kind=2, usage="me at ceph"),
)


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    ("definition", "why"),
    [
        (encrypted("uuid='gone'"), "no secret with matching uuid 'gone'"),
        (encrypted("usage='me at ceph'"), "no secret with matching me at ceph"),
        (served("iscsi", "usage='me at ceph'"), "no secret with matching me at ceph"),
        (SEALED.format("ephemeral"), "secret 'ephemeral' does not have a value"),
    ],
)
def test_nothing_is_ended_for_a_start_without_a_secret(
    connection: Connection,
    driver: LibvirtHypervisor,
    definition: str,
    why: str,
    image: Path | None,
) -> None:
    """libvirt forgets the value of an ephemeral one when the host is booted."""
    connection.definition, connection.secrets = definition, SECRETS
    with pytest.raises(DomainRefused, match=f"it would not start: .*{why}") as refused:
        driver.check_restore(OFF, image)
    assert "`virsh secret-define FILE`" in refused.value.hint()


@pytest.mark.parametrize(
    "definition",
    [
        encrypted("uuid='whole'"),
        served("ceph", "usage='me at ceph'"),
        served("new", "usage='none'"),
        SEALED.format("private"),
    ],
)
def test_a_secret_that_libvirt_has_is_enough(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition, connection.secrets = definition, SECRETS
    driver.check_restore(OFF, IMAGE)


def huge(mib: int, page: str = "<page size='2048' unit='KiB'/>") -> str:
    return (
        f"<domain><memory unit='KiB'>{mib << 10}</memory><memoryBacking><hugepages>{page}"
        "</hugepages></memoryBacking><devices/></domain>"
    )


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with 40 MiB in pages of 2 MiB, 8 of which are promised, and 16 more to be had."""
    pages = tmp_path / "hugepages-2048kB"
    pages.mkdir()
    monkeypatch.setattr(hugepages, "POOLS", tmp_path)
    for name, count in {"free": 20, "resv": 4, "nr_overcommit": 10, "surplus": 2}.items():
        (pages / f"{name}_hugepages").write_text(f"{count}\n")
    return pages


@pytest.mark.parametrize("image", [IMAGE, None])
def test_nothing_is_ended_for_a_start_without_huge_pages(
    connection: Connection, driver: LibvirtHypervisor, pool: Path, image: Path | None
) -> None:
    connection.definition = huge(48)
    driver.check_restore(OFF, image)
    connection.definition = huge(51)
    with pytest.raises(DomainRefused, match=r"it would not start: .* 48 MiB of them") as refused:
        driver.check_restore(OFF, image)
    assert refused.value.hint().startswith(f"provide 2 more of them ({pool}/nr_hugepages)")
    with pytest.raises(DomainRefused):
        driver.check_restore(replace(OFF, definition=huge(4)), image)
    running = replace(OFF, state=DomainState.RUNNING, definition=huge(4))
    driver.check_restore(running, image)
    with pytest.raises(DomainRefused):
        driver.check_restore(replace(running, definition=huge(4, "<page size='1048576'/>")), image)


@pytest.mark.usefixtures("pool")
def test_huge_pages_that_a_guest_is_not_offered_are_not_missed(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    """QEMU does not reserve those of a virtio-mem: a domain was refused that would start."""
    target = "<target><size unit='KiB'>{}</size><requested unit='KiB'>{}</requested></target>"
    offers = f"<memory model='virtio-mem'>{target}</memory>"
    whole = huge(32 + 1024).replace("<devices/>", f"<devices>{offers}</devices>")
    connection.definition = whole.format(1024 << 10, 16 << 10)
    driver.check_restore(OFF, IMAGE)
    driver.check_restore(OFF, None)
    connection.definition = whole.format(1024 << 10, 20 << 10)
    with pytest.raises(DomainRefused, match=r"its memory is 52 MiB in huge pages"):
        driver.check_restore(OFF, None)


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(
    "definition",
    [
        huge(1 << 20, "<page size='4096' unit='KiB'/>"),
        huge(1 << 20, "<page size='2048' unit='KiB' nodeset='0'/>"),
        huge(1 << 20, "<page size='2048' unit='KiB'/><page size='64' unit='KiB'/>"),
        huge(1 << 20).replace("hugepages", "other"),
    ],
)
def test_huge_pages_that_cannot_be_counted_are_not_missed(
    connection: Connection, driver: LibvirtHypervisor, definition: str
) -> None:
    connection.definition = definition
    driver.check_restore(OFF, IMAGE)


@pytest.mark.usefixtures("pool")
def test_huge_pages_that_a_hook_may_have_made_are_not_missed(
    connection: Connection, driver: LibvirtHypervisor, host: Path
) -> None:
    connection.definition = huge(1 << 20)
    host.touch()
    driver.check_restore(OFF, IMAGE)


@pytest.mark.parametrize("code", [3, 88])
def test_a_libvirt_that_cannot_say_may_start_it_all_the_same(
    connection: Connection, driver: LibvirtHypervisor, code: int
) -> None:
    """It does not implement it (VIR_ERR_NO_SUPPORT), or may not tell us (VIR_ERR_ACCESS_DENIED)."""
    connection.fails = code
    for definition in (
        needing("none", machine="machine='pc-q35-2.4'"),
        stored("none"),
        filtered("none"),
        encrypted("uuid='none'"),
    ):
        connection.definition = definition
        driver.check_restore(OFF, IMAGE)
        driver.check_restore(OFF, None)
