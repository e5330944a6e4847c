"""What a domain's XML tells of devices that a capture has to know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapvm.hypervisor import domainxml
from snapvm.hypervisor.base import Drives
from snapvm.hypervisor.domainxml import foreign_memory_writer
from snapvm.refusals import DiskRefused, DomainRefused

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"


def writer(devices: str, beside: str = "") -> str:
    return foreign_memory_writer(
        f"<domain xmlns:qemu='{QEMU}'><devices>{devices}</devices>{beside}</domain>"
    )


@pytest.mark.parametrize(
    ("device", "named"),
    [
        ("<interface type='vhostuser'/>", "interface (vhostuser)"),
        ("<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>", "(vdpa)"),
        ("<interface type='vhostuser'><backend type='passt'/></interface>", "(vhostuser)"),
        ("<disk type='vhostuser' device='disk'/>", "disk (vhostuser)"),
        ("<disk type='vhostvdpa' device='disk'/>", "disk (vhostvdpa)"),
        ("<video><driver name='vhostuser'/><model type='virtio'/></video>", "video (vhostuser)"),
        ("<filesystem type='mount'><driver type='virtiofs'/></filesystem>", "(virtiofs)"),
    ],
)
def test_who_writes_guest_memory_past_qemu_is_named(device: str, named: str) -> None:
    """QEMU's write protection does not see it: the memory would be torn, and recorded as good."""
    assert named in writer(device)


@pytest.mark.parametrize("kind", ["vhost-user-fs-pci", "vhost-vdpa-device-pci"])
@pytest.mark.parametrize("device", ["{},id=x", '{{"id":"x","driver":"{}"}}'])
def test_one_on_qemus_command_line_is_named_too(kind: str, device: str) -> None:
    arguments = f"<qemu:arg value='-device'/><qemu:arg value='{device.format(kind)}'/>"
    said = writer("", f"<qemu:commandline>{arguments}</qemu:commandline>")
    assert said == f"a {kind} on QEMU's command line is served past QEMU"


@pytest.mark.parametrize(
    "device",
    [
        "",
        "<interface type='bridge'><driver name='vhost' queues='4'/></interface>",
        "<interface type='user'><backend type='passt'/></interface>",
        "<disk type='block'><driver name='qemu' type='raw'/></disk>",
        "<vsock model='virtio'/>",
    ],
)
def test_the_kernel_and_qemu_write_under_its_eyes(device: str) -> None:
    """vhost of the kernel writes as QEMU, and waits for a page that is protected."""
    beside = "<qemu:commandline><qemu:arg value='-nodefaults'/></qemu:commandline>"
    assert writer(device, beside) == ""


LV = "<disk type='block'><source dev='/dev/vg/d0'/><target dev='vda'/>{}</disk>"


def drives(devices: str, *arguments: str) -> Drives:
    """Sort the drives of a domain that has a logical volume, some devices and some arguments."""
    given = "".join(
        f"<qemu:arg value='{argument.replace('<', '&lt;')}'/>" for argument in arguments
    )
    return domainxml.classify(
        "my web",
        f"<domain xmlns:qemu='{QEMU}'><devices>{devices}</devices>"
        f"<qemu:commandline>{given}</qemu:commandline></domain>",
        lambda pool, volume: Path("/dev", pool, volume),
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("-drive", "file=/data.img,if=none,id=d"),
        ("--drive", "file=/data.img,if=none,id=d,readonly=off"),
        ("-drive", "file=/a,,readonly=on,if=none"),
        ("-drive", "file=/vars.fd,if=pflash"),
        ("-blockdev", "driver=file,filename=/data.img,node-name=d,auto-read-only=on"),
        ("-blockdev", json.dumps({"driver": "file", "filename": "/d", "read-only": False})),
        ("-blockdev", '{"driver": "file", "filename": "/d", "read-only": true'),
        *((f"-hd{letter}", "/data.img") for letter in "abcd"),
        ("-sd", "/data.img"),
        ("-pflash", "/vars.fd"),
        ("-mtdblock", "/data.img"),
        ("-drive", ""),
        ("-device", "vhost-user-blk-pci,chardev=spdk0,num-queues=4"),
        ("--device", "id=scsi9,driver=vhost-user-scsi-pci,chardev=spdk1"),
        ("-device", '{"driver":"vhost-scsi-pci","wwpn":"naa.5001405","id":"lun"}'),
        ("-device", "nvdimm,id=nv1,memdev=mem1"),
        ("-device", "virtio-pmem-pci,memdev=mem2"),
    ],
)
def test_a_disk_that_only_qemu_knows_of_is_not_overlooked(option: str, value: str) -> None:
    """It would go on, while the others go back."""
    with pytest.raises(DomainRefused) as refused:
        drives(LV.format(""), "-nodefaults", option, *([value] if value else []))
    assert f"a disk on QEMU's command line ({option}{' ' * bool(value)}{value})" in str(
        refused.value
    )
    assert refused.value.hint().endswith("virsh edit 'my web'")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-drive", "file=/a.iso,media=cdrom,if=none"),
        ("-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/OVMF_CODE.fd"),
        ("-drive", "if=none,file=/a,,b,readonly"),
        ("-blockdev", "driver=file,filename=/data.img,node-name=d,read-only=on"),
        ("-blockdev", json.dumps({"driver": "file", "filename": "/d", "read-only": True})),
        ("-cdrom", "/a.iso"),
        ("-device", "virtio-rng-pci"),
        ("-device", "virtio-blk-pci,drive=vhost-user-blk"),
        ("-device", "vhost-user-fs-pci,chardev=c,tag=shared"),
        ("-device", "nvdimm,id=nv1,memdev=mem1,unarmed=on"),
        ("-chardev", "socket,id=vhost-user-blk,path=/var/tmp/vhost.0"),
        ("-display", "sdl"),
        (),
    ],
)
def test_what_qemu_does_not_write_to_does_no_harm(arguments: tuple[str, ...]) -> None:
    assert [disk.target for disk in drives(LV.format(""), *arguments).disks] == ["vda"]


@pytest.mark.parametrize(
    "inner", ["<transient/>", "<shareable/>", "<mirror job='copy'><target/></mirror>"]
)
def test_what_to_type_has_the_name_as_a_shell_wants_it(inner: str) -> None:
    with pytest.raises(DiskRefused) as refused:
        drives(LV.format(inner))
    assert "'my web'" in refused.value.hint()


@pytest.mark.parametrize(
    ("kind", "attribute", "image", "source"),
    [
        ("file", "file", "qcow2", "'/srv/my web.img'"),
        ("block", "dev", "qcow2", "'/srv/my web.img'"),
        ("volume", "volume", "vmdk", "FILE"),
    ],
)
def test_how_to_convert_an_image_is_told_whole(
    kind: str, attribute: str, image: str, source: str
) -> None:
    """It said `qemu-img convert -O raw`, and not that the definition has to name another volume."""
    disk = (
        f"<disk type='{kind}'><driver type='{image}'/><source pool='p' "
        f"{attribute}='/srv/my web.img'/><target dev='vda'/></disk>"
    )
    with pytest.raises(DiskRefused) as refused:
        drives(disk)
    convert = f"(qemu-img convert -f {image} -O raw {source} /dev/VG/LV)"
    assert f"{convert}, and name that in its definition, as raw" in refused.value.hint()
    assert "while the domain is off" in refused.value.hint()


@pytest.mark.parametrize(("kind", "attribute"), [("file", "file"), ("block", "dev")])
def test_an_external_snapshot_is_called_so(kind: str, attribute: str) -> None:
    """To convert such a file, as one that is no overlay, is not what its owner wants."""
    overlay = (
        f"<disk type='{kind}'><driver type='qcow2'/><source {attribute}='/d0.snap'/>"
        "<backingStore type='block'><format type='raw'/><source dev='/dev/vg/d0'/></backingStore>"
        "<target dev='vda'/></disk>"
    )
    with pytest.raises(DiskRefused, match=r"an overlay \(/d0.snap\)") as refused:
        drives(overlay)
    assert "virsh blockcommit 'my web' vda --active --pivot" in refused.value.hint()


def test_a_slice_of_a_volume_is_not_captured_with_the_rest_of_it() -> None:
    """A rollback wrote over the rest too, which may be the disk of a domain that is off."""
    sliced = (
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/>"
        "<source dev='/dev/vg/shared' index='1'>"
        "<slices><slice type='storage' offset='1048576' size='10737418240'/></slices>"
        "</source><target dev='vda' bus='virtio'/></disk>"
    )
    with pytest.raises(DiskRefused, match="it is a slice of its volume") as refused:
        drives(sliced)
    assert "a volume of its own" in refused.value.hint()


def test_what_is_the_hosts_is_told_of() -> None:
    """A disk that is passed through is in no snapshot, and was in no list of what is left out."""
    found = drives(
        LV.format("")
        + "<hostdev mode='subsystem' type='scsi'/><hostdev mode='subsystem' type='pci'/>"
        + "<filesystem type='mount'><source dir='/srv/web'/></filesystem>"
        + "<filesystem><readonly/></filesystem>"
    )
    assert [each.read_only for each in found.omitted] == [False, False, False, True]
    assert [f"{each.target}: {each.why}" for each in found.omitted] == [
        "hostdev0: a device of this host (scsi), with whatever is on it",
        "hostdev1: a device of this host (pci), with whatever is on it",
        "filesystem0: a folder of this host /srv/web",
        "filesystem1: a folder of this host",
    ]


def memory(model: str, target: str = "") -> str:
    return (
        f"<memory model='{model}' access='shared'><source><path>/data.raw</path></source>"
        f"<target><size unit='KiB'>524288</size>{target}</target></memory>"
    )


@pytest.mark.parametrize("model", ["nvdimm", "virtio-pmem"])
def test_memory_that_is_a_disk_is_refused_like_one_that_is_a_file(model: str) -> None:
    """Its file would not be captured, and old memory would be restored into it."""
    with pytest.raises(DiskRefused) as refused:
        drives(LV.format("") + memory("dimm") + memory(model, "<readonly/>") + memory(model))
    said = f"disk {model}1 of 'my web' cannot be captured: it is memory in /data.raw, not a logical"
    assert str(refused.value).startswith(said)
    assert refused.value.hint().endswith("virsh edit 'my web'")


def test_memory_that_the_guest_only_reads_is_left_out() -> None:
    found = drives(LV.format("") + memory("dimm") + memory("nvdimm", "<readonly/>"))
    assert [(each.target, each.why) for each in found.omitted] == [("nvdimm0", "read-only")]
    assert found.omitted[0].read_only


@pytest.mark.parametrize(
    ("device", "inside", "fixed"),
    [
        ("cdrom", "<source file='/a.iso'/>", True),
        ("disk", "<source file='/a.img'/><readonly/>", True),
        ("floppy", "", True),
        ("floppy", "<source file='/a.img'/><readonly/>", True),
        ("floppy", "<source file='/a.img'/>", False),
    ],
)
def test_a_drive_that_the_guest_can_write_to_is_told_apart(
    device: str, inside: str, fixed: bool
) -> None:
    drive = f"<disk type='file' device='{device}'>{inside}<target dev='sdx'/></disk>"
    (left_out,) = drives(LV.format("") + drive).omitted
    assert left_out.read_only is fixed
