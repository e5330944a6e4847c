"""What the lab's base image is made of, as data.

Everything that changes the built image is in this file or in ``base/``; the fingerprint over both
names the cached image, so an edit here leads to a new build and an edit elsewhere never does.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Release:
    """A release of Debian that a lab can be."""

    suite: str
    xen: str
    from_pypi: tuple[str, ...] = ()
    """Of what snapvm imports, that which is too old in this release."""
    python: str = ""
    """The version of Python for which those are fetched."""

    def packages(self) -> tuple[str, ...]:
        """Return the packages that are installed."""
        xen = (f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}")
        too_old = {f"python3-{library}" for library in self.from_pypi}
        return (*(name for name in PACKAGES if name not in too_old), *xen)


USUAL: Final = Release("trixie", xen="4.20")
"""Its QEMU emulates the others too: bookworm's (7.2) was seen to corrupt the memory of a host that
it emulates with nested domains."""
RELEASES: Final = {
    release.suite: release
    for release in (
        USUAL,
        Release("bookworm", xen="4.17", from_pypi=("sh", "typer"), python="3.11"),
        Release("forky", xen="4.20"),
    )
}
CHOSEN: Final = RELEASES[os.environ.get("SNAPVM_LAB_SUITE", USUAL.suite)]

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


def fingerprint(release: Release) -> str:
    """Return the name under which an image of this recipe is cached (16 hex digits)."""
    digest = hashlib.sha256(release.suite.encode())
    for path in (HERE / "recipe.py", HERE / "image.py", *sorted((HERE / "base").iterdir())):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
