"""Room for records and memory images in the file system of the state folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from snapvm import durable
from snapvm.refusals import HostLacks, NoSpace
from snapvm.settings import Settings

SPARE_BYTES = 64 << 20
"""What a memory image holds beside RAM: devices, headers, pages sent twice."""


NOTES_BYTES = 4 << 20
"""What journals and a record need, with much to spare for what others write there meanwhile."""
_NOTES_FILES = 16


def free_bytes(folder: Path) -> int:
    """Return the room in the file system of a folder, which need not be there yet."""
    status = _file_system(folder)
    return status.f_bavail * status.f_frsize


def _file_system(folder: Path) -> os.statvfs_result:
    with durable.failing_untouched(folder):
        return os.statvfs(next(filter(durable.is_there, (folder, *folder.parents))))


def require_writable(settings: Settings) -> None:
    """Raise ``HostLacks`` or ``NoSpace`` for a state folder in which nothing can be written down.

    A rollback writes down how far it is when the domain has ended, too: without room for that it
    would be off, and its memory lost.
    """
    durable.require_no_dead_link(settings.state_dir)
    status = _file_system(settings.state_dir)
    if status.f_flag & os.ST_RDONLY:
        raise HostLacks(
            what=f"a state folder that can be written to: {settings.state_dir} is read-only",
            remedy=f"`findmnt -T {shlex.quote(str(settings.state_dir))}` tells which file system "
            "it is in; the kernel makes one read-only when its disk fails (dmesg)",
        )
    # Of all that is free: what a file system keeps for root is for us.
    free = status.f_bfree * status.f_frsize
    if free < NOTES_BYTES:
        raise NoSpace(
            where=str(settings.state_dir),
            needed=f"{NOTES_BYTES >> 20} MiB for what is written down",
            free=f"{free >> 10} KiB",
            # In no other folder: a snapshot that is to be gone back to is in this one.
            remedy=f"make room there (df -h {shlex.quote(str(settings.state_dir))}), as "
            "`snapvm delete` and `snapvm prune` do",
        )
    if status.f_files > 0 and status.f_ffree < _NOTES_FILES:  # some have no number of them
        raise NoSpace(
            where=str(settings.state_dir),
            needed=f"{_NOTES_FILES} files",
            free=str(status.f_ffree),
            remedy="delete files there: its file system has no free inodes (df -i)",
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
