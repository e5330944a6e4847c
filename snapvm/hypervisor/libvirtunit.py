"""How libvirt is started on this host: libvirtd, or virtqemud for QEMU alone.

Where virtqemud has taken the place of libvirtd, starting libvirtd would end it (libvirt,
docs/daemons; src/qemu/virtqemud.service.extra.in).
"""

from __future__ import annotations

import os
from pathlib import Path

SYSTEMD = Path("/run/systemd/system")
"""It exists where systemd runs (sd_booted(3)), and not on Alpine, Gentoo with OpenRC or Void."""
SOCKET_OF_VIRTQEMUD = Path("/run/libvirt/virtqemud-sock")
"""It exists where libvirt's daemon for each driver is in use: RHEL 9, Fedora."""
UNITS_OF_VIRTQEMUD = (
    Path("/usr/lib/systemd/system/virtqemud.socket"),
    Path("/etc/systemd/system/virtqemud.socket"),
)
LIBVIRTD_ENABLED = (
    Path("/etc/systemd/system/sockets.target.wants/libvirtd.socket"),
    Path("/etc/systemd/system/multi-user.target.wants/libvirtd.service"),
)
"""Links that `systemctl enable` makes: Arch Linux has the units of both, and so has SUSE."""


def starting() -> str:
    """Return what starts libvirt."""
    if not SYSTEMD.is_dir():
        return f"its service is {_daemon()}"
    return f"systemctl start {'virtqemud.socket' if _is_virtqemud() else 'libvirtd'}"


def looking() -> str:
    """Return what tells how the daemon is doing."""
    return f"systemctl status {_daemon()}" if SYSTEMD.is_dir() else f"pgrep -a {_daemon()}"


def _daemon() -> str:
    return "virtqemud" if _is_virtqemud() else "libvirtd"


def _is_virtqemud() -> bool:
    if os.path.lexists(SOCKET_OF_VIRTQEMUD):
        return True
    is_libvirtd_enabled = any(map(os.path.lexists, LIBVIRTD_ENABLED))
    return not is_libvirtd_enabled and any(map(os.path.lexists, UNITS_OF_VIRTQEMUD))
