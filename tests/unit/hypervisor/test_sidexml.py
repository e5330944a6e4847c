"""Where a domain has its UEFI variables and its TPM; what is in no file is told of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapvm.hypervisor import sidexml
from snapvm.hypervisor.libvirt import LibvirtHypervisor
from snapvm.model import DomainState, SideShape
from snapvm.refusals import DomainRefused
from tests.fakes.scene import UUID
from tests.unit.hypervisor.fakelibvirt import OFF

DISK = "<disk type='block'><source dev='/dev/vg/d0'/><target dev='vda'/></disk>"
PASSED = "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
EXTERNAL = "<tpm><backend type='external'><source type='unix' path='/run/tpm'/></backend></tpm>"


def defined(inside: str, devices: str = "") -> str:
    return f"<domain><os>{inside}</os><devices>{DISK}{devices}</devices></domain>"


def test_where_libvirt_keeps_them() -> None:
    def places(inside: str, devices: str = "") -> list[tuple[str, str, str]]:
        definition = f"<domain><os>{inside}</os><devices>{devices}</devices></domain>"
        found = sidexml.places(definition, UUID)
        return [(place.kind.value, str(place.path), place.shape.value) for place in found]

    old = "<nvram template='/t.fd'>/var/lib/libvirt/qemu/nvram/demo_VARS.fd</nvram>"
    assert places(old) == [("nvram", "/var/lib/libvirt/qemu/nvram/demo_VARS.fd", "file")]
    assert places("<nvram type='file'><source file='/n.fd'/></nvram>") == [
        ("nvram", "/n.fd", "file")
    ]
    loader = "<loader readonly='{}' type='{}'>/fw.fd</loader>"
    assert places(loader.format("no", "pflash")) == [("nvram", "/fw.fd", "file")]
    assert places(loader.format("yes", "pflash")) == places(loader.format("no", "rom")) == []
    assert [path for _, path, _ in places(loader.format("no", "pflash") + old)] == [
        "/var/lib/libvirt/qemu/nvram/demo_VARS.fd"
    ]
    json_store = "<varstore template='/t.json' path='/var/lib/libvirt/qemu/varstore/demo.json'/>"
    assert places(json_store) == [("varstore", "/var/lib/libvirt/qemu/varstore/demo.json", "file")]
    assert places("<varstore template='/t.json'/>") == []
    block = "<nvram type='block'><source dev='/dev/vg/n'/></nvram>"
    assert places(block) == [("nvram", "/dev/vg/n", "device")]
    tpm = "<tpm model='tpm-crb'><backend type='emulator' version='{}'>{}</backend></tpm>"
    swtpm = f"/var/lib/libvirt/swtpm/{UUID}"
    assert places("", tpm.format("2.0", "")) == [("tpm", f"{swtpm}/tpm2", "folder")]
    assert places("", tpm.format("1.2", "")) == [("tpm", f"{swtpm}/tpm1.2", "folder")]
    own = tpm.format("2.0", "<source type='dir' path='/tpm'/>")
    assert places("", own) == [("tpm", "/tpm", "folder")]
    passed = "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"
    assert places("", passed) == [] and sidexml.places("", UUID) == ()


def test_a_vtpm_may_be_on_a_volume() -> None:
    """Such a domain could not be captured at all: its link was not to be replaced, and what it led
    to would have been, by a file."""

    def shape(kind: str, path: str) -> SideShape:
        source = f"<source type='{kind}' path='{path}'/>"
        tpm = f"<tpm><backend type='emulator' version='2.0'>{source}</backend></tpm>"
        (place,) = sidexml.places(defined("", tpm), UUID)
        return place.shape

    for path in ("/dev/vg/web1-tpm", "/dev/mapper/vg-web1--tpm"):
        assert shape("file", path) is SideShape.DEVICE
    assert shape("file", "/srv/tpm/web1") is SideShape.FILE
    assert shape("dir", "/dev/shm/web1") is SideShape.FOLDER


# What virt-install --boot uefi defines (libvirt 9.0, Debian 12), as `virsh dumpxml` has it while
# the domain is off, and while it is on.
LEFT_TO_LIBVIRT = """<domain type='kvm'>
  <name>web 1</name>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <firmware><feature enabled='yes' name='secure-boot'/></firmware>
    <loader secure='yes'{}/>
    {}
    <boot dev='hd'/>
  </os>
</domain>"""
CHOSEN = LEFT_TO_LIBVIRT.replace(
    "<loader secure='yes'{}/>",
    "<loader readonly='yes' secure='yes' type='{}'>/usr/share/OVMF/OVMF_CODE.fd</loader>",
)
DEFAULT_PATH = "/var/lib/libvirt/qemu/nvram/web 1_VARS.fd"


def test_where_the_variables_are_while_libvirt_has_yet_to_choose_the_firmware() -> None:
    """Before 9.2 it does at each start: a take of a domain that is off said nothing of them."""

    def paths(definition: str, *inside: str) -> list[str]:
        return [str(place.path) for place in sidexml.places(definition.format(*inside), UUID)]

    assert paths(LEFT_TO_LIBVIRT, "", "") == [DEFAULT_PATH]
    assert paths(LEFT_TO_LIBVIRT, "", "<nvram template='/t.fd'/>") == [DEFAULT_PATH]
    assert paths(CHOSEN, "pflash", f"<nvram>{DEFAULT_PATH}</nvram>") == [DEFAULT_PATH]
    assert paths(LEFT_TO_LIBVIRT, "", "<nvram>/n.fd</nvram>") == ["/n.fd"]
    assert paths(LEFT_TO_LIBVIRT, " stateless='yes'", "") == paths(CHOSEN, "rom", "") == []
    assert paths(LEFT_TO_LIBVIRT.replace("'efi'", "'bios'"), "", "") == []


@pytest.mark.parametrize(
    ("inside", "devices", "target", "why"),
    [
        (
            "<nvram type='network'><source protocol='iscsi' name='iqn/0'/></nvram>",
            "",
            "nvram",
            "is on the network (iscsi)",
        ),
        ("", "<pstore backend='acpi-erst'><path>/erst</path></pstore>", "pstore", "it is in /erst"),
        ("", EXTERNAL, "tpm", "by a swtpm that libvirt does not start"),
        ("", PASSED, "tpm", "the TPM of this host (passthrough)"),
    ],
)
def test_what_is_in_no_file_is_left_out_and_told(
    driver: LibvirtHypervisor, inside: str, devices: str, target: str, why: str
) -> None:
    """Nobody heard of it: a snapshot of the disks alone came back with other UEFI variables."""
    domain = replace(OFF, definition=defined(inside, devices))
    (omitted,) = driver.drives(domain).omitted
    assert omitted.target == target and why in omitted.why
    assert driver.side_places(domain) == ()


def test_what_is_in_a_file_is_not_left_out() -> None:
    emulated = "<tpm><backend type='emulator' version='2.0'/></tpm>"
    for source in ("/n.fd", "<source file='/n.fd'/>", "<source dev='/dev/vg/n'/>"):
        nvram = f"<nvram>{source}</nvram>"
        assert list(sidexml.left_out(defined(nvram, emulated))) == []


def test_memory_that_a_tpm_of_the_host_has_sealed_is_not_captured(
    driver: LibvirtHypervisor,
) -> None:
    """The guest's sessions with it, and what it has measured, do not go back."""
    running = replace(OFF, definition=defined("", PASSED), state=DomainState.RUNNING)
    with pytest.raises(DomainRefused, match="it has the TPM of this host") as refused:
        driver.check_capture(running, with_memory=True)
    assert "--disk-only" in refused.value.hint()
    driver.check_capture(running, with_memory=False)
