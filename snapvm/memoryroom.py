"""What memory this host can spare for captures of Xen guests, and what of it others count on.

The kernel tells what could be had now (MemAvailable).  Two captures that begin together would each
be told of all of it: pages that are going to be kept are not there yet, and a page cache in which a
guest's pages are about to be compared counts as free.  So each writes down what it may take, in a
file of the run folder that it holds locked: that of one which has died counts no more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SPARE_BYTES: Final = 128 << 20
"""What the host keeps for itself when its page cache is to hold a guest."""
TABLES_PART: Final = 64
"""What is kept of each frame, without its page, is one part in this many of the guest's size: 64
bytes, of which 16 are page tables of this process and the map of machine frames."""
PVH_TABLES_PART: Final = 32
"""The same in a control domain that is not PV: there each mapped frame needs a physical address and
so a ``struct page``, 64 bytes more (Linux, drivers/xen/unpopulated-alloc.c)."""
MEMINFO: Final = Path("/proc/meminfo")
GUEST_TYPE: Final = Path("/sys/hypervisor/guest_type")
"""What the control domain is to Xen: PV, PVH or HVM."""
LEAST_ROOM_BYTES: Final = 512 << 20
"""The least memory for changed pages that keeps every thread at work: two chunks for each."""
LEAST_DIGEST_ROOM_BYTES: Final = 128 << 20
"""The same for one thread.  With it a guest stands still for longer, and not for minutes."""

_LOCK: Final = "memory.lock"
_ENDING: Final = ".memory"
_DIGITS: Final = 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What memory there is for a guest of some size."""

    needed_bytes: int
    spare_bytes: int
    others_bytes: int = 0
    """What other captures count on, which is not spare."""
    tables_part: int = TABLES_PART

    @property
    def holds_all(self) -> bool:
        """The page cache can have the whole image, and there is room for what changes of it."""
        least_bytes = min(self.needed_bytes, LEAST_ROOM_BYTES)
        return self._beside_tables_bytes >= self.needed_bytes + least_bytes

    @property
    def holds_digests(self) -> bool:
        """There is room for what is kept of each frame, and for as many bytes of changed pages.

        Of a large guest enough pages to keep a thread at work will do: what does not fit is written
        while it stands still, and is a small part of it.
        """
        least_bytes = min(self._tables_bytes, LEAST_DIGEST_ROOM_BYTES)
        return self._beside_tables_bytes >= least_bytes

    @property
    def for_pages_bytes(self) -> int | None:
        """How much memory changed pages may take; None when there is enough for all of them.

        A guest may change all of itself, and then its pages are there twice.  Beside digests,
        pages take half of what is left, or what keeps every thread at work if that is more; the
        rest is for the next capture.
        """
        if not self.holds_all:
            left_bytes = max(self._beside_tables_bytes, 0)
            return min(left_bytes, max(LEAST_ROOM_BYTES, left_bytes // 2))
        left_bytes = self._beside_tables_bytes - self.needed_bytes
        return None if left_bytes >= self.needed_bytes else left_bytes

    @property
    def claimed_bytes(self) -> int:
        """How much of the host's memory the capture may come to take."""
        if not self.holds_digests:
            return 0
        pages_bytes = self.for_pages_bytes
        kept_bytes = self.needed_bytes if pages_bytes is None else pages_bytes
        cached_bytes = self.needed_bytes if self.holds_all else 0
        return self._tables_bytes + cached_bytes + kept_bytes

    @property
    def is_to_come(self) -> bool:
        """There is not enough now, and may be when another capture has ended."""
        return not self.holds_digests and bool(self.others_bytes)

    @property
    def _beside_tables_bytes(self) -> int:
        """What memory is left beside what is kept of each frame."""
        return self.spare_bytes - self._tables_bytes

    @property
    def _tables_bytes(self) -> int:
        return self.needed_bytes // self.tables_part

    def __str__(self) -> str:
        """Say why it does not hold all."""
        needed, spare, others = (
            number >> 20 for number in (self.needed_bytes, self.spare_bytes, self.others_bytes)
        )
        beside = f" beside the {others} MiB that other captures count on" if others else ""
        return (
            f"its {needed} MiB and what changes of them did not fit "
            f"the {spare} MiB of memory this host could spare{beside}"
        )


def available_bytes() -> int:
    """Return how much memory the host can give without swapping (proc(5), MemAvailable)."""
    for line in MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return max(int(value.split()[0]) * 1024 - _SPARE_BYTES, 0)
    return 0


def room_now(needed_bytes: int, others_bytes: int = 0) -> Room:
    """Return what there is now for a guest of such a size; nothing is claimed."""
    return Room(
        needed_bytes=needed_bytes,
        spare_bytes=max(available_bytes() - others_bytes, 0),
        others_bytes=others_bytes,
        tables_part=_tables_part(),
    )


def _tables_part() -> int:
    try:
        is_pv = GUEST_TYPE.read_text().strip() == "PV"
    except OSError:  # Linux before 4.15, whose control domains are PV
        is_pv = True
    return TABLES_PART if is_pv else PVH_TABLES_PART


class HostMemory:
    """The memory of this host as one capture sees it; what it claims it has until ``close``."""

    def __init__(self, folder: Path) -> None:
        """All captures of a host name the same ``folder``, which is emptied by a reboot."""
        self._folder = folder
        self._path: Path | None = None
        self._descriptor = -1

    def room(self, needed_bytes: int) -> Room:
        """Return what there is for a guest of such a size, and claim what it may take of that.

        A folder that cannot be written to keeps nobody from being captured.
        """
        self.close()
        try:
            with _alone(self._folder):
                room = room_now(needed_bytes, sum(_claims(self._folder)))
                self._claim(room.claimed_bytes)
        except OSError as error:
            log.warning("other captures running now are not reckoned with: %s", error)
            return room_now(needed_bytes)
        return room

    def close(self) -> None:
        """Give up what was claimed; harmless when nothing is."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._path = None

    def _claim(self, size_bytes: int) -> None:
        self._descriptor, name = tempfile.mkstemp(suffix=_ENDING, dir=self._folder)
        self._path = Path(name)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._descriptor, str(size_bytes).encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock under which captures look and claim, for a moment each."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / _LOCK, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _claims(folder: Path) -> Iterator[int]:
    """Yield what each other capture counts on; remove the files of those that have ended."""
    for path in folder.glob(f"*{_ENDING}"):
        with suppress(FileNotFoundError):  # it has just ended
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                text = os.pread(descriptor, _DIGITS, 0)
                yield int(text) if text.isdigit() else 0
            finally:
                os.close(descriptor)
