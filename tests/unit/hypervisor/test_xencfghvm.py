"""An HVM domain's configuration told again to xl, which boots it from disks alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapvm.hypervisor import xencfg, xenconfig
from tests.unit.hypervisor.hvmconfig import DEBIAN, WINDOWS, told

DEBIAN_TOLD = """\
type = "hvm"
name = "debian12"
uuid = "5f6e2a3c-8d5b-4a52-9a3d-3b6b3e2f7a10"
boot = "cd"
videoram = 8
vnc = 1
vnclisten = "127.0.0.1"
serial = "pty"
maxvcpus = 2
vcpus = 2
cpu_weight = 256
cap = 0
memory = 2048
maxmem = 2048
disk = ["format=raw,vdev=xvda,access=rw,target=/dev/vg0/debian12-root", \
"format=raw,vdev=hdc,access=ro,devtype=cdrom,target=/srv/iso/debian-12.iso"]
vif = ["type=ioemu,mac=00:16:3e:5a:10:01,bridge=xenbr0"]
on_reboot = "restart"
on_soft_reset = "soft-reset"
"""
WINDOWS_TOLD = """\
type = "hvm"
name = "win2022"
uuid = "0a4d0a44-5f0c-4f63-9a69-7d3c3f2a9b52"
passthrough = "disabled"
pae = 1
acpi_s3 = 1
acpi_s4 = 1
acpi_laptop_slate = 0
nx = 1
hpet = 1
vpt_align = 1
hvm_pirq = 0
nographic = 0
usb = 1
vkb_device = 1
xen_platform_pci = 1
bios = "ovmf"
boot = "dc"
keymap = "de"
soundhw = "hda"
apic = 1
dm_restrict = 0
device_model_stubdomain_override = 0
device_model_version = "qemu-xen"
device_model_args_hvm = ["-global", "PIIX4_PM.disable_s3=1"]
shadow_memory = 21
videoram = 32
stubdomain_memory = 0
rdm_mem_boundary = 2048
vnc = 1
vncunused = 0
vnclisten = "0.0.0.0"
vncpasswd = "geheim"
vncdisplay = "7"
sdl = 0
spice = 0
vga = "stdvga"
viridian = ["defaults", "reference_tsc", "stimer", "!crash_ctl"]
usbdevice = ["tablet"]
gfx_passthru = 0
ms_vm_genid = "generate"
maxvcpus = 4
vcpus = 4
cpu_weight = 256
cap = 0
memory = 4096
maxmem = 4096
max_event_channels = "1023"
max_grant_version = "2"
timer_mode = "no_delay_for_missed_ticks"
hap = 1
oos = 1
driver_domain = 0
acpi = 1
nestedhvm = 0
vpmu = 0
nomigrate = 0
localtime = 1
bootloader_restrict = 0
disk = ["format=raw,vdev=hda,access=rw,backendtype=phy,target=/dev/vg0/win2022-c", \
"format=empty,vdev=hdc,access=ro,devtype=cdrom,target="]
vif = ["type=ioemu,model=e1000,mac=00:16:3e:5a:20:01,bridge=xenbr0", \
"type=vif,devid=2,mac=00:16:3e:5a:20:02,bridge=xenbr1"]
on_reboot = "restart"
on_crash = "restart"
on_soft_reset = "soft-reset"
"""


@pytest.mark.parametrize(
    ("config", "text"),
    [(DEBIAN, DEBIAN_TOLD), (WINDOWS, WINDOWS_TOLD)],
    ids=["created", "rebooted"],
)
def test_a_whole_configuration_is_told_to_xl(config: dict[str, Any], text: str) -> None:
    """Each was refused; of the second libxl itself had chosen most."""
    listed = xenconfig.parse("demo", json.dumps([{"domid": 3, "config": config}]))
    assert xencfg.tell("demo", listed) == text


EVERY = range(64)
OWN: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({"firmware": "/x/hvmloader"}, ['firmware_override = "/x/hvmloader"']),
    ({"bios": "seabios"}, ['bios = "seabios"']),
    (
        {"bios": "ovmf", "system_firmware": "/x/OVMF.fd"},
        ['bios = "ovmf"', 'bios_path_override = "/x/OVMF.fd"'],
    ),
    (
        {"smbios_firmware": "/x/smbios", "acpi_firmware": "/x/acpi"},
        ['smbios_firmware = "/x/smbios"', 'acpi_firmware = "/x/acpi"'],
    ),
    ({"hdtype": "ahci", "boot": "ndc"}, ['hdtype = "ahci"', 'boot = "ndc"']),
    ({"pae": "False", "nx": "False"}, ["pae = 0", "nx = 0"]),
    ({"apic": "False"}, ["apic = 0"]),
    ({"acpi": "False"}, ["acpi = 0"]),
    (
        {"acpi_s3": "False", "acpi_s4": "False", "acpi_laptop_slate": "True"},
        ["acpi_s3 = 0", "acpi_s4 = 0", "acpi_laptop_slate = 1"],
    ),
    ({"hpet": "False", "vpt_align": "False"}, ["hpet = 0", "vpt_align = 0"]),
    ({"pirq": "True"}, ["hvm_pirq = 1"]),
    ({"viridian": "True"}, ["viridian = 1"]),
    ({"viridian": "False"}, ["viridian = 0"]),
    (
        {"viridian": "True", "viridian_enable": [8], "viridian_disable": [6]},
        ['viridian = ["defaults", "stimer", "!crash_ctl"]'],
    ),
    ({"viridian": "False", "viridian_enable": [0, 12]}, ['viridian = ["base", "cpu_hotplug"]']),
    ({"viridian_enable": [*EVERY]}, ['viridian = ["all"]']),
    (
        {"viridian_enable": [n for n in EVERY if n != 1], "viridian_disable": [1]},
        ['viridian = ["all", "!freq"]'],
    ),
    ({"mmio_hole_memkb": 1 << 20}, ["mmio_hole = 1024"]),
    ({"mmio_hole_memkb": 0}, []),
    ({"rdm_mem_boundary_memkb": 4 << 20}, ["rdm_mem_boundary = 4096"]),
    ({"timer_mode": "one_missed_tick_pending"}, ['timer_mode = "one_missed_tick_pending"']),
    ({"nested_hvm": "True"}, ["nestedhvm = 1"]),
    ({"altp2m": "True"}, ["altp2mhvm = 1"]),
    ({"altp2m": "False"}, []),
    (
        {"smbios": [{"key": "bios_vendor", "value": "a=b,c"}, {"key": "oem", "value": "d"}]},
        ['smbios = ["bios_vendor=a=b,c", "oem=d"]'],
    ),
    ({"vga": {"kind": "cirrus"}}, ['vga = "cirrus"']),
    ({"vga": {"kind": "std"}}, ['vga = "stdvga"']),
    ({"vga": {"kind": "none"}, "vnc": {"enable": "False"}}, ["vnc = 0", 'vga = "none"']),
    ({"vga": {"kind": "qxl"}, "nographic": "True"}, ["nographic = 1", 'vga = "qxl"']),
    (
        {"vnc": {"listen": "0.0.0.0:9", "passwd": 'a,"b', "findunused": "True"}},
        ["vncunused = 1", 'vnclisten = "0.0.0.0:9"', 'vncpasswd = "a,\\"b"'],
    ),
    (
        {"sdl": {"enable": "True", "opengl": "True", "display": ":1", "xauthority": "/x/a"}},
        ["sdl = 1", "opengl = 1", 'display = ":1"', 'xauthority = "/x/a"'],
    ),
    (
        {"spice": {"enable": "True", "port": 6000, "tls_port": 6001, "host": "::", "passwd": "b,"}},
        [
            "spice = 1",
            'spiceport = "6000"',
            'spicetls_port = "6001"',
            'spicehost = "::"',
            'spicepasswd = "b,"',
        ],
    ),
    (
        {"spice": {"disable_ticketing": "True", "agent_mouse": "False", "vdagent": "True"}},
        ["spicedisable_ticketing = 1", "spiceagent_mouse = 0", "spicevdagent = 1"],
    ),
    (
        {"spice": {"clipboard_sharing": "True", "usbredirection": 3}},
        ["spice_clipboard_sharing = 1", 'spiceusbredirection = "3"'],
    ),
    (
        {"spice": {"image_compression": "auto_glz", "streaming_video": "filter"}},
        ['spice_image_compression = "auto_glz"', 'spice_streaming_video = "filter"'],
    ),
    ({"gfx_passthru": "True"}, ["gfx_passthru = 1"]),
    ({"gfx_passthru": "True", "gfx_passthru_kind": "igd"}, ['gfx_passthru = "igd"']),
    ({"serial": "pty", "usbdevice": "mouse"}, ['serial = "pty"', 'usbdevice = "mouse"']),
    (
        {"serial_list": ["pty", "file:/x"], "usb": "True", "usbdevice_list": ["tablet"]},
        ["usb = 1", 'serial = ["pty", "file:/x"]', 'usbdevice = ["tablet"]'],
    ),
    ({"usbversion": 3, "soundhw": "ac97"}, ['usbversion = "3"', 'soundhw = "ac97"']),
    ({"vkb_device": "False", "keymap": "fr"}, ["vkb_device = 0", 'keymap = "fr"']),
    ({"xen_platform_pci": "False"}, ["xen_platform_pci = 0"]),
    ({"xen_platform_pci_bar_uc": "False"}, ["xen_platform_pci_bar_uc = 0"]),
    ({"vendor_device": "xenserver"}, ['vendor_device = "xenserver"']),
    ({"ms_vm_genid": [0, 7, *[0] * 14]}, ['ms_vm_genid = "generate"']),
    ({"ms_vm_genid": [0] * 16}, []),
    ({"mca_caps": 1}, ['mca_caps = ["lmce"]']),
    ({"rdm": {"strategy": "host"}}, ['rdm = "strategy=host,policy=relaxed"']),
    ({"rdm": {"strategy": "host", "policy": "strict"}}, ['rdm = "strategy=host,policy=strict"']),
    ({"rdm": {"policy": "relaxed"}}, []),
    ({"timeoffset": ""}, []),
)


@pytest.mark.parametrize(("own", "lines"), OWN, ids=str)
def test_what_only_an_hvm_domain_has_is_told_to_xl(own: dict[str, Any], lines: list[str]) -> None:
    assert told(own) == lines


@pytest.mark.parametrize(
    ("beside", "lines"),
    [
        ({"acpi": "True"}, ["acpi = 1"]),
        ({"apic": "True", "dm_restrict": "True"}, ["apic = 1", "dm_restrict = 1"]),
        ({"video_memkb": 16384}, ["videoram = 16"]),
        ({"video_memkb": 0}, ["videoram = 0"]),
        ({"shadow_memkb": 65536}, ["shadow_memory = 64"]),
        ({"shadow_memkb": 2049}, ["shadow_memory = 3"]),
        ({"altp2m": "external"}, ['altp2m = "external"']),
        ({"rtc_timeoffset": 4294963696}, ['rtc_timeoffset = "4294963696"']),
        (
            {"device_model": "/x/qemu", "device_model_version": "qemu_xen"},
            ['device_model_version = "qemu-xen"', 'device_model_override = "/x/qemu"'],
        ),
        (
            {"device_model_version": "qemu_xen_traditional", "device_model_user": "nobody"},
            ['device_model_version = "qemu-xen-traditional"', 'device_model_user = "nobody"'],
        ),
        (
            {"extra": ["-a"], "extra_pv": ["-b"], "extra_hvm": ["-c", "d e"]},
            [
                'device_model_args = ["-a"]',
                'device_model_args_pv = ["-b"]',
                'device_model_args_hvm = ["-c", "d e"]',
            ],
        ),
        (
            {"kernel": "/boot/vmlinuz", "ramdisk": "/boot/initrd", "cmdline": "a b"},
            ['kernel = "/boot/vmlinuz"', 'ramdisk = "/boot/initrd"', 'cmdline = "a b"'],
        ),
        (
            {
                "device_model_stubdomain": "True",
                "device_model_ssidref": 9,
                "stubdomain_memkb": 204800,
                "stubdomain_kernel": "/x/k",
                "stubdomain_cmdline": "c",
                "stubdomain_ramdisk": "/x/r",
            },
            [
                "device_model_stubdomain_override = 1",
                'stubdomain_kernel = "/x/k"',
                'stubdomain_cmdline = "c"',
                'stubdomain_ramdisk = "/x/r"',
                "stubdomain_memory = 200",
            ],
        ),
    ],
    ids=str,
)
def test_what_qemu_is_told_beside_that_is_told_to_xl(
    beside: dict[str, Any], lines: list[str]
) -> None:
    assert told({}, beside) == lines


@pytest.mark.parametrize(("inner", "outer", "number"), [(1, 0, 0), (0, 1, 0), (1, 1, 1), (0, 0, 0)])
def test_acpi_is_on_where_both_places_say_so(inner: int, outer: int, number: int) -> None:
    """libxl sets the inner one by itself (libxl_internal.h, libxl__acpi_defbool_val)."""
    words = ("False", "True")
    assert told({"acpi": words[inner]}, {"acpi": words[outer]}) == [f"acpi = {number}"]


def test_the_devices_of_an_hvm_domain_are_told_to_xl() -> None:
    """A PV domain has no cards."""
    nics: list[dict[str, Any]] = [
        {"devid": 1, "model": "e1000", "nictype": "vif_ioemu", "mac": "00:16:3e:00:00:01"},
        {"devid": 3, "nictype": "vif"},
        {"model": "virtio-net-pci"},
    ]
    screens = [{"devid": 0, "vnc": {"enable": "True"}}]
    disks = [
        {"vdev": "hda", "format": "raw", "pdev_path": "/dev/vg0/a", "readwrite": 1},
        {"vdev": "hdc", "format": "empty", "is_cdrom": 1, "removable": 1},
    ]
    lines = told({}, None, nics=nics, vfbs=screens, vkbs=[{"devid": 0}], disks=disks)
    assert [line.split(" = ")[0] for line in lines] == ["disk", "vif", "vfb"]
    drives, cards, screen = (line.split(" = ")[1] for line in lines)
    assert json.loads(drives) == [
        "format=raw,vdev=hda,access=rw,target=/dev/vg0/a",
        "format=empty,vdev=hdc,access=ro,devtype=cdrom,target=",
    ]
    assert json.loads(cards) == [
        "type=ioemu,model=e1000,devid=1,mac=00:16:3e:00:00:01",
        "type=vif,devid=3",
        "model=virtio-net-pci",
    ]
    assert json.loads(screen) == ["vnc=1"]
