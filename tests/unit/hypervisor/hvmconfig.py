"""Configurations of HVM domains, as `xl list -l` has them.

They are what xl and libxl of Xen 4.17 and 4.20 made of xl's own language.
"""

from __future__ import annotations

import json
from typing import Any

from snapvm.hypervisor import xencfg, xenconfig

SHARE = {"sched": "credit2", "weight": 256, "cap": 0}
DEBIAN: dict[str, Any] = {
    "c_info": {
        "type": "hvm",
        "name": "debian12",
        "uuid": "5f6e2a3c-8d5b-4a52-9a3d-3b6b3e2f7a10",
        "run_hotplug_scripts": "True",
    },
    "b_info": {
        "max_vcpus": 2,
        "avail_vcpus": [0, 1],
        "max_memkb": 2097152,
        "target_memkb": 2097152,
        "video_memkb": 8192,
        "sched_params": SHARE,
        "claim_mode": "True",
        "type.hvm": {
            "vga": {},
            "vnc": {"enable": "True", "listen": "127.0.0.1"},
            "sdl": {},
            "spice": {},
            "serial": "pty",
            "boot": "cd",
            "rdm": {},
        },
        "arch_arm": {},
        "arch_x86": {},
    },
    "disks": [
        {
            "pdev_path": "/dev/vg0/debian12-root",
            "vdev": "xvda",
            "format": "raw",
            "readwrite": 1,
        },
        {
            "pdev_path": "/srv/iso/debian-12.iso",
            "vdev": "hdc",
            "format": "raw",
            "removable": 1,
            "is_cdrom": 1,
        },
    ],
    "nics": [
        {
            "devid": 0,
            "mac": "00:16:3e:5a:10:01",
            "bridge": "xenbr0",
            "nictype": "vif_ioemu",
        }
    ],
    "on_reboot": "restart",
    "on_soft_reset": "soft_reset",
}
"""Of one that xl has just created: what was not asked for is not there."""
WINDOWS: dict[str, Any] = {
    "c_info": {
        "type": "hvm",
        "hap": "True",
        "oos": "True",
        "ssidref": 12,
        "name": "win2022",
        "uuid": "0a4d0a44-5f0c-4f63-9a69-7d3c3f2a9b52",
        "run_hotplug_scripts": "True",
        "driver_domain": "False",
        "passthrough": "disabled",
        "xend_suspend_evtchn_compat": "False",
    },
    "b_info": {
        "max_vcpus": 4,
        "avail_vcpus": [0, 1, 2, 3],
        "numa_placement": "True",
        "max_memkb": 4194304,
        "target_memkb": 4194304,
        "video_memkb": 32768,
        "shadow_memkb": 20481,
        "iommu_memkb": 0,
        "localtime": "True",
        "disable_migrate": "False",
        "blkdev_start": "xvda",
        "max_grant_version": 2,
        "device_model_version": "qemu_xen",
        "device_model_stubdomain": "False",
        "stubdomain_memkb": 0,
        "extra_hvm": ["-global", "PIIX4_PM.disable_s3=1"],
        "sched_params": SHARE,
        "claim_mode": "True",
        "event_channels": 1023,
        "acpi": "True",
        "bootloader_restrict": "False",
        "timer_mode": "no_delay_for_missed_ticks",
        "nested_hvm": "False",
        "apic": "True",
        "dm_restrict": "False",
        "type.hvm": {
            "bios": "ovmf",
            "pae": "True",
            "acpi": "True",
            "acpi_s3": "True",
            "acpi_s4": "True",
            "acpi_laptop_slate": "False",
            "nx": "True",
            "viridian": "True",
            "viridian_enable": [3, 8],
            "viridian_disable": [6],
            "hpet": "True",
            "vpt_align": "True",
            "mmio_hole_memkb": 0,
            "altp2m": "False",
            "nographic": "False",
            "vga": {"kind": "std"},
            "vnc": {
                "enable": "True",
                "listen": "0.0.0.0",
                "passwd": "geheim",
                "display": 7,
                "findunused": "False",
            },
            "keymap": "de",
            "sdl": {"enable": "False"},
            "spice": {"enable": "False"},
            "gfx_passthru": "False",
            "boot": "dc",
            "usb": "True",
            "vkb_device": "True",
            "soundhw": "hda",
            "xen_platform_pci": "True",
            "usbdevice_list": ["tablet"],
            "ms_vm_genid": [210, 13, 186, 185, 100, 71, 183, 54, 26, 37, 125, 97, 63, 157, 81, 3],
            "rdm": {"policy": "relaxed"},
            "rdm_mem_boundary_memkb": 2097152,
            "pirq": "False",
        },
        "arch_arm": {},
        "arch_x86": {"msr_relaxed": "False"},
        "vpmu": "False",
    },
    "disks": [
        {
            "pdev_path": "/dev/vg0/win2022-c",
            "vdev": "hda",
            "backend": "phy",
            "format": "raw",
            "readwrite": 1,
        },
        {"pdev_path": "", "vdev": "hdc", "format": "empty", "removable": 1, "is_cdrom": 1},
    ],
    "nics": [
        {
            "devid": 0,
            "model": "e1000",
            "mac": "00:16:3e:5a:20:01",
            "bridge": "xenbr0",
            "nictype": "vif_ioemu",
        },
        {
            "devid": 2,
            "mac": "00:16:3e:5a:20:02",
            "bridge": "xenbr1",
            "nictype": "vif",
        },
    ],
    "on_reboot": "restart",
    "on_crash": "restart",
    "on_soft_reset": "soft_reset",
}
"""Of one that has rebooted: what libxl chose is there as though it had been asked for."""


def told(
    own: dict[str, Any], beside: dict[str, Any] | None = None, **devices: list[dict[str, Any]]
) -> list[str]:
    """Tell an HVM domain's configuration; ``own`` is in ``type.hvm``, ``beside`` in ``b_info``.

    Returns the lines that this adds to those of a domain of which nothing is known.
    """
    plain: dict[str, Any] = {"c_info": {"type": "hvm", "name": "demo"}, "b_info": {"type.hvm": {}}}
    config = {**plain, "b_info": {**(beside or {}), "type.hvm": own}, **devices}
    texts = [
        xencfg.tell("demo", xenconfig.parse("demo", json.dumps([{"config": each}])))
        for each in (plain, config)
    ]
    without, lines = (text.splitlines() for text in texts)
    return [line for line in lines if line not in without]
