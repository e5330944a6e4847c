"""What a domain's XML tells of devices that a capture has to know."""

from __future__ import annotations

import pytest

from snapvm.hypervisor.domainxml import foreign_memory_writer

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
