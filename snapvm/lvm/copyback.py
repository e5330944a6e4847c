"""Bringing a thick disk back to a snapshot of it: what the snapshot holds is copied onto the disk.

A chunk the snapshot holds already is not copied into it once more when the disk is written, and
one it does not hold is equal on both (linux, dm-snap.c).  So writing just those chunks takes the
disk back, the snapshot stays as it is and does not grow, and the copying may be begun again from
the start after a crash.  Confirmed in the lab with byte-for-byte comparisons.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from snapvm import durable
from snapvm.failures import CommandFailed, StorageFailed
from snapvm.lvm import argv, directio, exceptionstore
from snapvm.lvm.directio import BUFFER_BYTES, Device
from snapvm.lvm.exceptionstore import ChangedChunks
from snapvm.model import LvRef, Progress
from snapvm.process import Runner

log = logging.getLogger(__name__)

_MAPPER = Path("/dev/mapper")
_LEAST_CHUNK_BYTES = 4096
"""Of a thick snapshot (lvcreate(8), --chunksize)."""

Runs = Callable[[], Iterator[tuple[int, int]]]
"""Stretches of a disk, ascending: offset and length in bytes."""


def copy_back(runner: Runner, snapshot: LvRef, disk: LvRef, progress: Progress) -> None:
    """Make a disk that nobody uses equal to a thick snapshot of it, durably.

    A disk that has grown since keeps what is behind the snapshot's end.  Raises ``StorageFailed``,
    also for a snapshot that the kernel has given up; doing it again is safe.
    """
    with durable.failing_as_storage(disk.path), directio.reading(snapshot.path) as source:
        changed = _changed(runner, snapshot, source.size_bytes)

        def runs() -> Iterator[tuple[int, int]]:
            if changed is None:
                return _everything(source.size_bytes)
            return changed.runs(BUFFER_BYTES, source.size_bytes)

        # Where all is compared, what is written must not reach into chunks that are equal: the
        # snapshot would copy those, and it may have no room for them.
        grain_bytes = _LEAST_CHUNK_BYTES if changed is None else BUFFER_BYTES
        with directio.overwriting(disk.path) as target:
            _copy(runs, source, target, progress, grain_bytes)
            target.sync()


def _changed(runner: Runner, snapshot: LvRef, disk_bytes: int) -> ChangedChunks | None:
    """Return what the snapshot holds; None when that is not sure, and all has to be compared."""
    store = _MAPPER / argv.mapped_name(snapshot, "cow")
    try:
        with directio.reading(store) as device:
            changed = exceptionstore.read_table(device.read, device.size_bytes, disk_bytes)
    except exceptionstore.StoreLost:
        why = "the snapshot is lost: its store ran full or could not be written"
        raise StorageFailed(path=str(snapshot.path), why=why) from None
    except (exceptionstore.StoreUnreadable, OSError) as error:
        log.warning("%s is compared with its disk, as its table cannot be used: %s", store, error)
        return None
    counted = _chunks_by_kernel(runner, snapshot, changed.chunk_bytes)
    if counted != len(changed):
        log.warning(
            "%s is compared with its disk: its table has %d chunks and the kernel counts %s",
            store,
            len(changed),
            counted,
        )
        return None
    return changed


def _chunks_by_kernel(runner: Runner, snapshot: LvRef, chunk_bytes: int) -> int | None:
    """Return how many chunks the kernel says are in the store, without tables and header.

    ``START LENGTH snapshot USED/TOTAL METADATA`` in sectors (linux, device-mapper/snapshot.rst).
    """
    try:
        words = runner.run(argv.statuses([snapshot])).stdout.split()
        used, metadata = int(words[3].partition("/")[0]), int(words[4])
    except (CommandFailed, IndexError, ValueError):
        return None
    return (used - metadata) * 512 // chunk_bytes


def _everything(size_bytes: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, size_bytes, BUFFER_BYTES):
        yield offset, min(BUFFER_BYTES, size_bytes - offset)


def _copy(
    runs: Runs, source: Device, target: Device, progress: Progress, grain_bytes: int = BUFFER_BYTES
) -> None:
    """Write only what differs: a second try and the disk's other snapshots then have less to do.

    Of what differs whole grains are written.  The runs are gone through twice and never kept: there
    may be many millions of them.
    """
    end = total_bytes = done_bytes = 0
    for offset, length in runs():
        end = offset + length
        total_bytes += length
    if end > target.size_bytes:
        raise OSError(errno.ENOSPC, "the disk has become smaller than its snapshot")
    for offset, length in runs():
        former, present = source.read(offset, length), target.read(offset, length)
        for first, behind in _differing(former, present, grain_bytes):
            target.write(offset + first, former[first:behind])
        done_bytes += length
        progress.advance(done_bytes, total_bytes)


def _differing(
    former: memoryview, present: memoryview, grain_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield the stretches in which two views differ, grown to whole grains: begin and end."""
    # As bytes: comparing two views goes element by element.
    if bytes(former) == bytes(present):
        return
    begin: int | None = None
    for at in range(0, len(former), grain_bytes):
        behind = at + grain_bytes
        if bytes(former[at:behind]) == bytes(present[at:behind]):
            if begin is not None:
                yield begin, at
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, len(former)
