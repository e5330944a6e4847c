"""Where the lab keeps things; free of heavy imports, since ``pulse`` is called over and over."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOOT_FOLDER: Final = Path("/var/lib/lab")
"""Kernel and initramfs of the domains."""

SOCKET_FOLDER: Final = Path("/run/pulse")
"""The consoles of libvirt domains, NAME.sock each, and a lock for each console."""

XL_FOLDER: Final = Path("/etc/xen/lab")
"""The xl configurations, NAME.cfg each."""


def on_xen() -> bool:
    """Tell whether this lab is a Xen dom0."""
    return Path("/proc/xen/capabilities").exists()
