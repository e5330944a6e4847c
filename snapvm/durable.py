"""Files that are either wholly there or not at all, and that only root can read.

A rename is atomic, but neither the file's bytes nor the folder's entry are on the disk until each
has been fsynced (fsync(2): "Calling fsync() does not necessarily ensure that the entry in the
directory containing the file has also reached disk").
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapvm import crashpoint
from snapvm.attention import NameUnclear
from snapvm.errors import quoted
from snapvm.failures import StorageFailed
from snapvm.refusals import HostLacks, NotAllowed

_NFS_KEEPS = ".nfs"
_FILE_MODE = 0o600
_FOLDER_MODE = 0o700
_BLOCK_BYTES = 512
"""What `st_blocks` counts (stat(2))."""


def is_there(path: Path) -> bool:
    """Tell whether there is such a file or folder; raise ``OSError`` where that cannot be told.

    ``os.path.exists`` says no then, and ``Path.exists`` from Python 3.14 on: what a server or a
    disk does not show just now would be taken for what is gone.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folder(path: Path) -> None:
    """Make a private folder, and those above it that are missing; a folder that exists is kept."""
    missing = [folder for folder in (path, *path.parents) if not is_there(folder)]
    for folder in reversed(missing):
        folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        sync_folder(folder.parent)


def require_no_dead_link(path: Path) -> None:
    """Raise ``HostLacks`` when a folder, or one above it, is a link to nothing.

    So is a link from the usual state folder to a disk that is not mounted.  Raises
    ``StorageFailed`` and ``NotAllowed`` where it cannot be told.
    """
    for place in (path, *path.parents):
        with failing_untouched(place):
            leads_nowhere = place.is_symlink() and not is_there(place)
        if leads_nowhere:
            target = shlex.quote(os.path.realpath(place))
            raise HostLacks(
                what=f"the folder {quoted(str(path))}: {quoted(str(place))} is a link to {target}, "
                "which is not there",
                remedy=f"is the disk that holds it mounted? if there is none: mkdir -p {target}",
            )


def write(path: Path, data: bytes, *, known_as: str = "") -> None:
    """Replace the file ``path`` by one that holds ``data``, in one step, and durably.

    ``known_as`` names the crash point of a file that has another name each time.
    """
    fresh = unfinished(path)
    with crashpoint.around(f"write {known_as or path.name}"):
        try:
            with os.fdopen(create(fresh), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
        except OSError:
            with suppress(OSError):  # what was written may have taken the last room there was
                fresh.unlink()
            raise
        sync_folder(path.parent)


def unfinished(path: Path) -> Path:
    """Return the name that a file or folder has until it is complete."""
    return path.with_name(f".{path.name}.new")


def rename(path: Path, new: Path) -> None:
    """Give a file or folder a new name in the same folder, durably.

    Raises ``OSError`` when it has its old name, still or again, and ``NameUnclear`` when it could
    not be given that back.
    """
    path.rename(new)
    try:
        sync_folder(new.parent)
    except OSError as error:
        # Nobody may act on a name that the next boot of the host might not know.
        try:
            new.rename(path)
        except OSError as stuck:
            why = f"{error.strerror or error}; {stuck.strerror or stuck}"
            raise NameUnclear(path=str(new), why=why) from error
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder and all that is in it, durably, except for what NFS keeps for a reader.

    A file that is open has another name there until it is closed, and its folder stays so long
    (Linux, fs/nfs/unlink.c): a backup may read an image that is deleted.
    """
    try:
        shutil.rmtree(path)
    except OSError as error:
        names = os.listdir(path) if error.errno in (errno.ENOTEMPTY, errno.EBUSY) else []
        if not names or not all(name.startswith(_NFS_KEEPS) for name in names):
            raise
    sync_folder(path.parent)


def create(path: Path) -> int:
    """Open a new private file, to write it and to read it back; what has its name is removed.

    What was there is never written to: in the folders of QEMU and swtpm, where side files lie, it
    may be a pipe, or a link to some other file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, _FILE_MODE)
    except FileExistsError:
        path.unlink(missing_ok=True)
        return os.open(path, flags, _FILE_MODE)


def no_link(path: str, flags: int) -> int:
    """Open a file, but never through a link: an ``opener`` for ``open``."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def open_file(path: Path | str, access: int = os.O_RDONLY) -> int:
    """Open a regular file that exists; raise ``OSError`` for a link, a pipe or a folder."""
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, access | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def is_of_file(error: OSError) -> bool:
    """Tell whether the file itself is why it could not be read: it is no file, or its disk is bad.

    Too many open files, an NFS server that lost it or SELinux say nothing of what is in it.
    """
    return error.errno in (errno.EIO, errno.EINVAL, errno.ELOOP)


def read(path: Path | str, limit_bytes: int) -> bytes:
    """Return a file's bytes; raises as ``open_file``, and ``ValueError`` when it is too large."""
    descriptor = open_file(path)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > limit_bytes:
            raise ValueError(f"it is larger than {limit_bytes} bytes")
        # Not the limit: to allocate megabytes for each record of a `list` is slow.
        return read_at(descriptor, size_bytes, 0)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, count_bytes: int, offset_bytes: int) -> bytes:
    """Return the bytes at an offset; fewer only where the file ends, as ``read_into``.

    ``count_bytes`` may be far more than there is: memory is touched for what is read alone, which a
    buffer to be filled would not do.
    """
    pieces: list[bytes] = []
    while count_bytes and (piece := os.pread(descriptor, count_bytes, offset_bytes)):
        pieces.append(piece)
        count_bytes -= len(piece)
        offset_bytes += len(piece)
    return b"".join(pieces)


def read_into(buffer: bytearray, descriptor: int, offset_bytes: int) -> int:
    """Fill a buffer with the bytes at an offset; return how many, fewer only where the file ends.

    A single read that comes upon a bad block returns what stands before it, as at the end of the
    file; the next one fails (Linux, mm/filemap.c, filemap_read).
    """
    view, count = memoryview(buffer), 0
    while count < len(view) and (
        more := os.preadv(descriptor, [view[count:]], offset_bytes + count)
    ):
        count += more
    return count


def rewrite(descriptor: int, data: memoryview, offset_bytes: int) -> None:
    """Put all bytes at an offset: a single pwrite(2) may write only a part of them, and succeed."""
    left = data.cast("B")
    while left:
        written_bytes = os.pwrite(descriptor, left, offset_bytes)
        left = left[written_bytes:]
        offset_bytes += written_bytes


def let_go(descriptor: int) -> None:
    """Bring a file's bytes to the disk and give back the page cache that they took."""
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_on_disk(path: Path) -> int:
    """Return how much of the disk a file takes; one with holes is longer than that."""
    return path.stat().st_blocks * _BLOCK_BYTES


def sync_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    _sync(path, os.O_NOFOLLOW)


def sync_device(path: Path) -> None:
    """Bring what the page cache holds of a block device to it; the name may be a link."""
    _sync(path, 0)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to the disk."""
    _sync(path, os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def failing_as_storage(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block, which works on ``path``, into ``StorageFailed``.

    It names the file of the error itself, where that has one.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if not (isinstance(named, str) and os.path.isabs(named)):
            named = path  # shutil.rmtree works with descriptors, and with names below them
        raise StorageFailed(path=str(named), why=error.strerror or str(error)) from error


@contextmanager
def failing_untouched(path: Path) -> Iterator[None]:
    """As `failing_as_storage`, for a block before which nothing was touched.

    Where only root may do what the block does, anybody else is refused by ``NotAllowed``.
    """
    try:
        with failing_as_storage(path):
            yield
    except StorageFailed as failure:
        if isinstance(failure.__cause__, PermissionError) and os.geteuid() != 0:
            raise NotAllowed(path=failure.path, why=failure.why) from failure.__cause__
        raise
