"""Room for records and memory images in the file system of the state folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from snapvm.refusals import HostLacks, NoSpace
from snapvm.settings import Settings

SPARE_BYTES = 64 << 20
"""What a memory image holds beside RAM: devices, headers, pages sent twice."""


def free_bytes(folder: Path) -> int:
    """Return the room in the file system of a folder, which need not be there yet."""
    status = _file_system(folder)
    return status.f_bavail * status.f_frsize


def _file_system(folder: Path) -> os.statvfs_result:
    return os.statvfs(next(place for place in (folder, *folder.parents) if place.exists()))


def require_writable(settings: Settings) -> None:
    """Raise ``HostLacks`` for a state folder in which nothing can be written down."""
    if _file_system(settings.state_dir).f_flag & os.ST_RDONLY:
        raise HostLacks(
            what=f"a state folder that can be written to: {settings.state_dir} is read-only",
            remedy=f"`findmnt -T {shlex.quote(str(settings.state_dir))}` tells which file system "
            "it is in; the kernel makes one read-only when its disk fails (dmesg)",
        )


def check(settings: Settings, memory_bytes: int) -> None:
    """Raise ``NoSpace`` when the file system of the state folder cannot hold a memory image."""
    status = _file_system(settings.state_dir)
    free = status.f_bavail * status.f_frsize
    kept = status.f_blocks * status.f_frsize * (1 - settings.image_limit_percent / 100)
    needed_bytes = memory_bytes + memory_bytes // 20 + SPARE_BYTES
    if free - kept < needed_bytes:
        percent = f"{settings.image_limit_percent:g} %"
        limit = f" (at most {percent} full: image_limit_percent)" if kept else ""
        raise NoSpace(
            where=f"{settings.state_dir}{limit}",
            needed=f"{needed_bytes >> 20} MiB for the memory image",
            free=f"{int(max(free - kept, 0)) >> 20} MiB",
        )
