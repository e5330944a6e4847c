"""What libvirt would start a domain from: memory it has saved by itself, or files that are gone."""

from __future__ import annotations

import errno
import os
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm.hypervisor import libvirtimages
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import DomainState
from snapvm.refusals import DomainRefused
from tests.fakes.storage import unanswered
from tests.unit.hypervisor.fakelibvirt import IMAGE, OFF, Connection, libvirtError


@pytest.mark.parametrize("image", [None, Path("/x")])
@pytest.mark.parametrize("state", [DomainState.SHUTOFF, DomainState.RUNNING])
def test_disks_do_not_go_back_below_memory_that_libvirt_keeps(
    connection: Connection, driver: LibvirtHypervisor, image: Path | None, state: DomainState
) -> None:
    connection.is_saved = True
    with pytest.raises(DomainRefused, match="managed save") as refused:
        driver.check_restore(replace(OFF, state=state), image)
    assert "`virsh managedsave-remove 'my web'`" in refused.value.hint()
    assert ("virsh start" in refused.value.hint()) is (state is DomainState.SHUTOFF)


@pytest.mark.parametrize("with_memory", [False, True])
def test_a_domain_whose_memory_libvirt_keeps_is_not_captured_as_if_it_had_none(
    connection: Connection, driver: LibvirtHypervisor, with_memory: bool
) -> None:
    connection.is_saved = True
    with pytest.raises(DomainRefused, match="managed save") as refused:
        driver.check_capture(OFF, with_memory=with_memory)
    assert "`virsh start 'my web'`" in refused.value.hint()


@pytest.mark.parametrize("kind", ["sev", "sev-snp", "tdx"])
def test_memory_that_is_kept_from_the_host_is_not_captured(
    driver: LibvirtHypervisor, kind: str
) -> None:
    """QEMU blocks no capture of a TDX guest, whose pages it cannot read: none would come back."""
    security = f"<domain><launchSecurity type='{kind}'/><devices/></domain>"
    running = replace(OFF, state=DomainState.RUNNING, definition=security)
    with pytest.raises(DomainRefused, match=f"keeps its memory from this host .*{kind}") as refused:
        driver.check_capture(running, with_memory=True)
    assert "--disk-only" in refused.value.hint()
    driver.check_capture(running, with_memory=False)
    plain = replace(running, definition=security.replace(kind, "s390-pv"))
    driver.check_capture(plain, with_memory=True)


def test_one_that_is_just_off_is_both(connection: Connection, driver: LibvirtHypervisor) -> None:
    driver.check_capture(OFF, with_memory=True)
    driver.check_restore(OFF, None)
    driver.check_restore(OFF, Path("/x"))
    assert connection.asked == ["/x"]


@pytest.mark.parametrize("job", [2, -1], ids=["saved", "coming"])
@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
@pytest.mark.parametrize("image", [IMAGE, None])
def test_one_that_libvirt_works_on_is_refused_before_anything_is_made(
    connection: Connection,
    driver: LibvirtHypervisor,
    image: Path | None,
    state: DomainState,
    job: int,
) -> None:
    """A backup was met when it was to stand still; one that was being saved was ended.

    Of one that was just migrated here libvirt's word was told: "statistics are available only on
    the source host".
    """
    connection.job = job
    with pytest.raises(DomainRefused, match="a migration, a dump, a backup") as refused:
        driver.check_restore(replace(OFF, state=state), image)
    with pytest.raises(DomainRefused, match="a migration, a dump, a backup"):
        driver.check_capture(replace(OFF, state=state), with_memory=False)
    assert "virsh domjobabort 'my web'" in refused.value.hint()
    driver.check_restore(OFF, image)


def test_one_that_is_not_known_any_more_has_nothing_saved(
    connection: Connection, driver: LibvirtHypervisor
) -> None:
    connection.is_known = False
    driver.check_restore(OFF, Path("/x"))
    assert connection.asked == ["/x"]


@pytest.mark.parametrize("is_labelled", [True, False])
def test_an_image_that_libvirt_may_not_read_is_told_of_when_it_is_made(
    connection: Connection,
    driver: LibvirtHypervisor,
    is_labelled: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On Fedora and RHEL 10: takes went well for a year, and the rollback was refused."""

    def deny(*_: object) -> str:
        raise libvirtError(
            "Failed to open file '/s/domains/u/a/memory.save': Permission denied", 38
        )

    def labelled(*_: object) -> bytes:
        if not is_labelled:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return b"system_u:object_r:var_lib_t:s0\0"

    image = Path("/s/domains/u/a/memory.save")
    libvirtimages.warn_unreadable(driver._link, OFF, image)
    assert not caplog.text
    monkeypatch.setattr(connection, "saveImageGetXMLDesc", deny)
    monkeypatch.setattr(os, "getxattr", labelled)
    libvirtimages.warn_unreadable(driver._link, OFF, image)
    with pytest.raises(DomainRefused, match="Permission denied") as refused:
        driver.check_restore(OFF, image)
    assert "libvirt cannot use the memory image of my web" in caplog.text
    for text in (caplog.text, refused.value.hint()):
        assert ("-t virt_image_t '/s(/.*)?'; restorecon -R /s" in text) is is_labelled


def drive(source: str, *, device: str = "cdrom", policy: str = "", kind: str = "file") -> str:
    attribute = {"file": "file", "block": "dev"}.get(kind, "name")
    startup = f" startupPolicy='{policy}'" if policy else ""
    return (
        f"<domain><devices><disk type='{kind}' device='{device}'>"
        f"<source {attribute}='{source}'{startup}/><target dev='sda'/>"
        f"{'' if device == 'scratch' else '<readonly/>'}</disk></devices></domain>"
    ).replace("'scratch'", "'disk'")


HOST_FILES = (
    ("serial port", "serial type='dev'", "source path='{}'"),
    ("channel port", "channel type='dev'", "source path='{}'"),
    ("source of random numbers", "rng", "backend model='random'", "{}"),
    ("input device", "input type='evdev'", "source dev='{}'"),
    ("input device", "input type='passthrough'", "source evdev='{}'"),
    ("memory", "memory model='nvdimm'", "source", "<path>{}</path>"),
    ("device's ROM", "interface type='bridge'", "rom bar='on' file='{}'"),
    ("device's ROM", "hostdev mode='subsystem' type='pci' managed='yes'", "rom file='{}'"),
    ("screen's graphics card", "graphics type='egl-headless'", "gl rendernode='{}'"),
    ("network's device", "interface type='vdpa'", "source dev='{}'"),
    ("TPM", "tpm", "backend type='passthrough'", "<device path='{}'/>"),
    ("shared folder", "filesystem type='mount'", "source dir='{}'"),
    ("TPM", "tpm", "backend type='external'", "<source type='unix' mode='connect' path='{}'/>"),
    ("network's socket", "interface type='vhostuser'", "source mode='client' path='{}'"),
    ("shared folder's socket", "filesystem", "source socket='{}'"),
    ("serial port's socket", "serial type='unix'", "source mode='connect' path='{}'"),
)
"""What it is called, the device, and what in it names the file."""


def device(outer: str, inner: str, content: str = "") -> str:
    inside = f"<{inner}>{content}</{inner.split(maxsplit=1)[0]}>".format("/gone/it")
    return f"<domain><devices><{outer}>{inside}</{outer.split(maxsplit=1)[0]}></devices></domain>"


def boot_file(name: str, path: str) -> str:
    return f"<domain><os><{name} type='x'>{path}</{name}></os><devices/></domain>"


KERNEL_FILES = ("kernel", "initrd", "dtb", "loader", "shim")
FIRMWARE_FILE = (
    "<domain><sysinfo type='fwcfg'><entry name='opt/com.coreos/config' file='/gone/a.ign'/>"
    "</sysinfo><devices/></domain>"
)
LIMITED = (
    "<domain><blkiotune><device><path>/gone/it</path><weight>300</weight></device></blkiotune>"
    "<devices/></domain>"
)
ARGUMENTS = (
    ("-fw_cfg", "name=opt/com.coreos/config,file=/gone/a,,b.ign"),
    ("-fw_cfg", "opt/org.flatcar-linux/config,file=/gone/a.ign"),
    ("-drive", "file=/gone/a.iso,media=cdrom"),
    ("-smbios", "file=/gone/a.bin"),
)


def on_command_line(arguments: tuple[str, ...]) -> str:
    """Return a definition that hands QEMU these arguments directly."""
    given = "".join(f"<q:arg value='{each}'/>" for each in arguments)
    spaces = "xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'"
    return f"<domain {spaces}><devices/><q:commandline>{given}</q:commandline></domain>"


@pytest.mark.parametrize("image", [IMAGE, None])
@pytest.mark.parametrize(
    ("definition", "what"),
    [
        (drive("/gone/a.iso"), "cdrom sda"),
        (drive("/gone/sr0", kind="block"), "cdrom sda"),
        (drive("/gone/a.img", device="floppy"), "floppy sda"),
        (drive("/gone/a.img", device="disk"), "disk sda"),
        (drive("/gone/a.iso", policy="mandatory"), "cdrom sda"),
        *((boot_file(name, "/gone/it"), name) for name in KERNEL_FILES),
        (boot_file("acpi", "<table type='slic'>/gone/it</table>"), "ACPI table"),
        *((device(*each), what) for what, *each in HOST_FILES),
        (FIRMWARE_FILE, "firmware's entry"),
        (LIMITED, "device with limited I/O"),
        *((on_command_line(each), "file on QEMU's command line") for each in ARGUMENTS),
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
    assert hint.startswith("put it back")
    edit = "`virsh save-image-edit '/images/my memory.save'`" if image else "`virsh edit 'my web'`"
    assert edit in hint and ("--no-verify" in hint) is bool(image)
    connection.definition = re.sub(r"/gone/\w+(,,\w+)?[.\w]*", "/dev/null", definition)
    driver.check_restore(OFF, image)


@pytest.mark.parametrize("again", ["yes", "no"])
def test_a_socket_that_qemu_tries_again_need_not_be_there(
    connection: Connection, driver: LibvirtHypervisor, again: str
) -> None:
    reconnect = f"<reconnect enabled='{again}' timeout='10'/>"
    connection.definition = device(
        "serial type='unix'", "source mode='connect' path='{}'", reconnect
    )
    refusing: AbstractContextManager[object] = (
        pytest.raises(DomainRefused) if again == "no" else nullcontext()
    )
    with refusing:
        driver.check_restore(OFF, IMAGE)


@pytest.mark.parametrize("image", [IMAGE, None])
def test_nothing_is_ended_for_a_start_that_would_wait_for_a_server(
    connection: Connection,
    driver: LibvirtHypervisor,
    image: Path | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is down, with an ISO on it: snapvm waited itself, and then libvirt would have."""
    connection.definition = drive("/nfs/a.iso")
    with (
        unanswered(monkeypatch, Path("/nfs/a.iso")),
        pytest.raises(
            DomainRefused, match=r"its cdrom sda does not answer \(/nfs/a.iso"
        ) as refused,
    ):
        driver.check_restore(OFF, image)
    assert "`virsh" in refused.value.hint()


@pytest.mark.parametrize(
    ("device", "policy", "restored", "booted"),
    [
        ("cdrom", "optional", True, True),
        ("disk", "optional", False, True),
        ("floppy", "requisite", True, False),
        ("disk", "requisite", False, False),
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
    assert "virsh dumpxml --security-info 'my web' >FILE; virsh define" in refused.value.hint()
    kept = domain.definition.replace("version", "persistent_state='yes' version")
    driver.check_restore(replace(domain, definition=kept), None)
