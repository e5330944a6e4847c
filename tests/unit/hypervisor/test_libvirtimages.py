"""What libvirt would start a domain from: memory it has saved by itself, or files that are gone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from snapvm.hypervisor import libvirtlink
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import Domain, DomainState, DomainUuid, HypervisorKind
from snapvm.refusals import DomainRefused
from snapvm.settings import Settings

OFF = Domain(
    name="my web",
    uuid=DomainUuid("11111111-2222-3333-4444-555555555555"),
    hypervisor=HypervisorKind.LIBVIRT,
    state=DomainState.SHUTOFF,
    memory_bytes=1 << 20,
    vcpus=1,
    definition="<domain><devices/></domain>",
)


class libvirtError(Exception):  # noqa: N801 - libvirt's own name
    def __init__(self, said: str, code: int = 42) -> None:
        super().__init__(said)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self.code


@dataclass
class Network:
    """One that is defined, and may be started."""

    is_active: bool

    def isActive(self) -> int:  # noqa: N802 - libvirt's own name
        return int(self.is_active)


EMULATOR = "/usr/bin/qemu-system-x86_64"


@dataclass
class Connection:
    """A libvirt with one domain, or none; the one that is there may have been saved."""

    is_saved: bool = False
    is_known: bool = True
    is_persistent: bool = True
    definition: str = OFF.definition
    """Of the image, and what is defined."""
    asked: list[str] = field(default_factory=list)
    machines: frozenset[tuple[str, str]] = frozenset({("kvm", "pc-q35-10.0"), ("qemu", "pc")})
    networks: dict[str, bool] = field(default_factory=dict)
    """Those that are defined, and whether they are active."""
    fails: int = 0
    """With which code whatever is asked about emulators and networks; 0: it does not."""

    def lookupByUUIDString(self, uuid: str) -> Connection:  # noqa: N802 - libvirt's own name
        assert uuid == OFF.uuid
        if not self.is_known:
            raise libvirtError("Domain not found")
        return self

    def isPersistent(self) -> int:  # noqa: N802 - libvirt's own name
        return int(self.is_persistent)

    def getDomainCapabilities(  # noqa: N802 - libvirt's own name
        self, emulator: str | None, arch: str | None, machine: str | None, kind: str, flags: int
    ) -> str:
        assert (arch, flags) == ("x86_64", 0)
        self._fail()
        if emulator not in (None, EMULATOR):
            raise libvirtError(f"Cannot check QEMU binary {emulator}: No such file", 38)
        if machine and (kind, machine) not in self.machines:
            raise libvirtError(f"the machine '{machine}' is not supported by emulator", 8)
        return "<domainCapabilities/>"

    def networkLookupByName(self, name: str) -> Network:  # noqa: N802 - libvirt's own name
        self._fail()
        if name not in self.networks:
            raise libvirtError(f"Network not found: no network with matching name '{name}'", 43)
        return Network(self.networks[name])

    def _fail(self) -> None:
        if self.fails:
            raise libvirtError(
                "this function is not supported by the connection driver", self.fails
            )

    def hasManagedSaveImage(self, flags: int) -> int:  # noqa: N802 - libvirt's own name
        assert flags == 0
        return int(self.is_saved)

    def saveImageGetXMLDesc(self, path: str, _flags: int) -> str:  # noqa: N802 - libvirt's own name
        self.asked.append(path)
        return self.definition

    def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's own name
        assert flags == 2, "not what the next start is from"
        return self.definition


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(libvirtlink, "libvirt", type("libvirt", (), {"libvirtError": libvirtError}))
    return Connection()


@pytest.fixture
def driver(connection: Connection) -> LibvirtHypervisor:
    link = type("Link", (), {"connection": connection, "domain": libvirtlink.Link.domain})()
    return LibvirtHypervisor(link, Settings())


@pytest.mark.parametrize("image", [None, Path("/x")])
@pytest.mark.parametrize("state", [DomainState.SHUTOFF, DomainState.RUNNING])
def test_its_disks_do_not_go_back_below_it(
    connection: Connection, driver: LibvirtHypervisor, image: Path | None, state: DomainState
) -> None:
    connection.is_saved = True
    with pytest.raises(DomainRefused, match="managed save") as refused:
        driver.check_restore(replace(OFF, state=state), image)
    assert "`virsh managedsave-remove 'my web'`" in refused.value.hint()
    assert ("virsh start" in refused.value.hint()) is (state is DomainState.SHUTOFF)


@pytest.mark.parametrize("with_memory", [False, True])
def test_nor_is_it_captured_as_if_it_had_none(
    connection: Connection, driver: LibvirtHypervisor, with_memory: bool
) -> None:
    connection.is_saved = True
    with pytest.raises(DomainRefused, match="managed save") as refused:
        driver.check_capture(OFF, with_memory=with_memory)
    assert "`virsh start 'my web'`" in refused.value.hint()


def test_one_that_is_just_off_is_both(connection: Connection, driver: LibvirtHypervisor) -> None:
    driver.check_capture(OFF, with_memory=True)
    driver.check_restore(OFF, None)
    driver.check_restore(OFF, Path("/x"))
    assert connection.asked == ["/x"]


def test_one_that_is_not_known_any_more_has_nothing_saved(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.is_known = False
    driver.check_restore(OFF, Path("/x"))
    assert connection.asked == ["/x"]


IMAGE = Path("/images/my memory.save")


def drive(source: str, *, device: str = "cdrom", policy: str = "", kind: str = "file") -> str:
    attribute = {"file": "file", "block": "dev"}.get(kind, "name")
    startup = f" startupPolicy='{policy}'" if policy else ""
    return (
        f"<domain><devices><disk type='{kind}' device='{device}'>"
        f"<source {attribute}='{source}'{startup}/><target dev='sda'/>"
        f"{'' if device == 'scratch' else '<readonly/>'}</disk></devices></domain>"
    ).replace("'scratch'", "'disk'")


def boot_file(name: str, path: str) -> str:
    return f"<domain><os><{name} type='x'>{path}</{name}></os><devices/></domain>"


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    ("definition", "what"),
    [
        (drive("/gone/a.iso"), "cdrom sda"),
        (drive("/gone/sr0", kind="block"), "cdrom sda"),
        (drive("/gone/a.img", device="floppy"), "floppy sda"),
        (drive("/gone/a.img", device="disk"), "disk sda"),
        (drive("/gone/a.iso", policy="mandatory"), "cdrom sda"),
        *((boot_file(name, "/gone/it"), name) for name in ("kernel", "initrd", "dtb", "loader")),
    ],
)
def test_nothing_is_ended_for_a_start_that_would_miss_a_file(
    connection: Connection,
    driver: LibvirtHypervisor,
    definition: str,
    what: str,
    image: Path | None,
) -> None:
    """libvirt finds out when the domain that was there is gone, and its memory with it."""
    connection.definition = definition
    with pytest.raises(DomainRefused, match=rf"its {what} is not there \(/gone/") as refused:
        driver.check_restore(OFF, image)
    hint = refused.value.hint()
    assert hint.startswith("put the file back")
    edit = "`virsh save-image-edit '/images/my memory.save'`" if image else "`virsh edit 'my web'`"
    assert edit in hint and ("--no-verify" in hint) is bool(image)
    connection.definition = re.sub(r"/gone/[\w.]+", "/dev/null", definition)
    driver.check_restore(OFF, image)


@pytest.mark.parametrize(
    ("device", "policy", "restored", "booted"),
    [
        ("cdrom", "optional", True, True),
        ("disk", "optional", False, True),
        ("floppy", "requisite", True, False),
    ],
)
def test_some_files_libvirt_can_do_without(
    connection: Connection,
    driver: LibvirtHypervisor,
    device: str,
    policy: str,
    restored: bool,
    booted: bool,
) -> None:
    connection.definition = drive("/gone/it", device=device, policy=policy)
    for image, can in ((IMAGE, restored), (None, booted)):
        if can:
            driver.check_restore(OFF, image)
        else:
            with pytest.raises(DomainRefused, match="not there"):
                driver.check_restore(OFF, image)


def test_what_is_elsewhere_or_looked_at_elsewhere_is_not_looked_for(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    for definition in (
        drive("pool/a.iso", kind="network"),
        drive(""),
        drive("/gone/d0", device="scratch", kind="block"),
        boot_file("loader", ""),
    ):
        connection.definition = definition
        driver.check_restore(OFF, IMAGE)
        driver.check_restore(OFF, None)


def test_a_domain_that_is_left_off_needs_no_file(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.definition = drive("/gone/a.iso")
    driver.check_restore(OFF, None, starts=False)


def test_one_that_is_not_defined_boots_from_what_it_was(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.is_known = False
    with pytest.raises(DomainRefused, match="its cdrom sda is not there"):
        driver.check_restore(replace(OFF, definition=drive("/gone/a.iso")), None)


def test_a_file_that_cannot_be_looked_at_may_be_there(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.definition = drive(f"/{'x' * 300}.iso")
    driver.check_restore(OFF, IMAGE)


@pytest.mark.parametrize("is_persistent", [True, False])
def test_a_vtpm_that_would_go_with_its_domain_is_not_lost(
    connection: Connection, driver: LibvirtHypervisor, is_persistent: bool
) -> None:
    """Without memory a new one would be made: what is sealed with it could not be opened."""
    tpm = "<tpm><backend type='emulator' version='2.0'/></tpm>"
    domain = replace(OFF, definition=f"<domain><devices>{tpm}</devices></domain>")
    connection.definition, connection.is_persistent = domain.definition, is_persistent
    if is_persistent:
        driver.check_restore(domain, None)
        return
    with pytest.raises(DomainRefused, match="transient") as refused:
        driver.check_restore(domain, None)
    assert "virsh define" in refused.value.hint()


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
