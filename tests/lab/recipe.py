"""What the lab's base image is made of, as data.

Everything that changes the built image is in this file or in ``base/``; the fingerprint over both
names the cached image, so an edit here leads to a new build and an edit elsewhere never does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent

SUITE: Final = "trixie"

PACKAGES: Final = (
    # storage
    "dmeventd",
    "e2fsprogs",
    "lvm2",
    "thin-provisioning-tools",
    "udev",
    # libvirt and KVM
    "dbus",
    "libvirt-clients",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-system",
    "qemu-system-x86",
    "qemu-utils",
    # Xen; qemu-system-xen serves disks of the kind qdisk
    "qemu-system-xen",
    "xen-hypervisor-4.20-amd64",
    "xen-utils-4.20",
    "xenstore-utils",
    # kernel; tiny-initramfs spares the time initramfs-tools takes (we pack our own initramfs)
    "busybox-static",
    "kmod",
    "linux-image-amd64",
    "tiny-initramfs",
    # what snapvm and its tests import
    "python3",
    "python3-hypothesis",
    "python3-jsonschema",
    "python3-libvirt",
    "python3-numpy",
    "python3-pytest",
    "python3-rich",
    "python3-sh",
    "python3-tenacity",
    "python3-typer",
    "python3-xxhash",
    # for people
    "iproute2",
    "jq",
    "less",
    "man-db",
    "procps",
    "socat",
    "strace",
    "zstd",
)

EXCLUDED_PATHS: Final = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    *(
        f"*/lib/modules/*/kernel/{folder}/*"
        for folder in (
            "drivers/gpu",
            "drivers/iio",
            "drivers/infiniband",
            "drivers/media",
            "drivers/net/ethernet",
            "drivers/net/wireless",
            "drivers/staging",
            "drivers/usb",
            "sound",
        )
    ),
)
"""Unpacking these would cost time and space, and nothing in the lab looks at them."""

IMAGE_BYTES: Final = 8 << 30
"""Size of the (sparse) root file system."""

HOST_TOOLS: Final = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "gcc": "gcc",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "tar": "tar",
}
"""Programs the host needs, each with the Debian package that has it."""


def fingerprint() -> str:
    """Return the name under which an image of this recipe is cached (16 hex digits)."""
    digest = hashlib.sha256()
    for path in (HERE / "recipe.py", HERE / "image.py", *sorted((HERE / "base").iterdir())):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
