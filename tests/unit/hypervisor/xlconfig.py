"""The configuration of a domain with one disk, as xl lists it."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "c_info": {"type": "pv", "name": "demo", "uuid": "u-u", "domid": 5},
    "b_info": {
        "max_vcpus": 2,
        "max_memkb": 131072,
        "target_memkb": 131072,
        "type.pv": {},
        "kernel": "/boot/vmlinuz",
        "cmdline": "console=hvc0 x='1'",
    },
    "disks": [
        {
            "pdev_path": "/dev/vg0/a,b",
            "vdev": "xvda",
            "backend": "phy",
            "format": "raw",
            "readwrite": 1,
        }
    ],
    "on_reboot": "restart",
}
