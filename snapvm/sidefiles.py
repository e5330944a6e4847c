"""Small files that belong to a machine beside its disks: UEFI variables, the state of a vTPM.

They are read inside the window, into memory, and written into the record's folder after it.  A
rollback puts them back where the domain has its own now, while it is off; what was there is put
aside first, for the undo record.  Memory that is restored has its own copy of both and wins: QEMU
writes a pflash back whole, and gives a TPM its state, when it has loaded them.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from snapvm import checksum, crashpoint, durable
from snapvm.failures import StorageFailed
from snapvm.hypervisor import answers, startfiles
from snapvm.model import OmittedDisk, SideFile, SideKind, SidePlace, SideShape, Silent
from snapvm.refusals import DomainRefused, RecordUnusable

LIMIT_BYTES = 128 << 20
"""Of all of them together, since they are read into memory.  UEFI variables of a PC are 528 KiB,
those of an ARM board 64 MiB."""

IS_DEVICE = stat.S_ISBLK
"""What a device is known by; it has a name because tests, which have no devices, use files."""
_LABEL = "security.selinux"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A file and what it held at the instant of the window."""

    kind: SideKind
    name: str
    content: bytes


def check(domain: str, places: Iterable[SidePlace]) -> tuple[OmittedDisk, ...]:
    """Before the window: return the places where nothing is yet; raise ``DomainRefused``.

    UEFI variables get their file when the domain first starts, a vTPM its folder.  Both may be on a
    server, for the sake of migration, which may not answer.
    """
    wanted = tuple(places)
    if not wanted:
        return ()
    try:
        return answers.within(answers.LIMIT_SECONDS, partial(_check, domain, wanted))
    except TimeoutError:
        why = f"its {wanted[0].kind} does not answer ({wanted[0].path})"
        raise DomainRefused(domain=domain, why=why, remedy=startfiles.NO_ANSWER) from None


def _check(domain: str, places: Iterable[SidePlace]) -> tuple[OmittedDisk, ...]:
    total_bytes, missing = 0, []
    for place in places:
        try:
            if place.path.is_symlink() and place.shape is not SideShape.DEVICE:
                why = f"its {place.kind} {place.path} is a link, which a rollback would replace"
                remedy = (
                    f"name what it leads to, {place.path.resolve()}, in the domain's definition"
                )
                raise DomainRefused(domain=domain, why=why, remedy=remedy)
            if not durable.is_there(place.path):
                why = f"{place.path} is not there yet"
                missing.append(OmittedDisk(target=place.kind.value, why=why))
            total_bytes += sum(_size_bytes(place, path) for path in _files(place))
        except OSError as error:
            # The kernel names no file where one is open already.
            why = f"its {place.kind} {place.path} cannot be read ({error.strerror or error})"
            mending = StorageFailed(path=str(place.path), why=error.strerror or "").hint()
            raise DomainRefused(domain=domain, why=why, remedy=mending) from error
    if total_bytes > LIMIT_BYTES:
        most = f"{LIMIT_BYTES >> 20} MiB"
        why = f"its UEFI variables and vTPM hold {total_bytes >> 20} MiB; {most} can be captured"
        raise DomainRefused(domain=domain, why=why)
    return tuple(missing)


def read(places: Iterable[SidePlace], limit_seconds: float | None = None) -> tuple[Held, ...]:
    """While the domain stands still: read all of them within the limit; raise ``StorageFailed``."""
    wanted = tuple(places)
    if not wanted:
        return ()
    limit_seconds = answers.LIMIT_SECONDS if limit_seconds is None else limit_seconds
    try:
        return answers.within(limit_seconds, partial(_read_all, wanted))
    except TimeoutError:
        why = f"it does not answer within {limit_seconds:g} s"
        raise StorageFailed(path=str(wanted[0].path), why=why) from None


def _read_all(places: Iterable[SidePlace]) -> tuple[Held, ...]:
    held = []
    for place in places:
        read_one = _read_device if place.shape is SideShape.DEVICE else _read
        with durable.failing_as_storage(place.path):
            for path in _files(place):
                content = read_one(path)
                held.append(Held(kind=place.kind, name=path.name, content=content))
    return tuple(held)


def _read(path: Path) -> bytes:
    try:
        return durable.read(path, LIMIT_BYTES)
    except ValueError as error:  # it has grown since ``check``
        raise StorageFailed(path=str(path), why=str(error)) from error


def _read_device(path: Path) -> bytes:
    """Return all of a block device; one that has grown is not read beyond the limit."""
    with _device(path, os.O_RDONLY) as descriptor:
        return durable.read_at(descriptor, LIMIT_BYTES, 0)


def _size_bytes(place: SidePlace, path: Path) -> int:
    """Return how much there is to read; raise ``OSError`` where that is not allowed.

    A server may show root what it lets only QEMU's user read (exports(5), root_squash).
    """
    if place.shape is SideShape.DEVICE:
        with _device(path, os.O_RDONLY) as descriptor:
            return os.lseek(descriptor, 0, os.SEEK_END)
    descriptor = durable.open_file(path)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


@contextmanager
def _device(path: Path, access: int) -> Iterator[int]:
    """Open a block device for the block; ``OSError`` for anything else that has its name."""
    descriptor = os.open(path, access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not IS_DEVICE(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOTBLK, "it is no block device", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _files(place: SidePlace) -> Iterator[Path]:
    """Yield the files of a place that are there; swtpm's lock is no state."""
    if not durable.is_there(place.path):
        return
    if place.shape is not SideShape.FOLDER:
        yield place.path
        return
    for path in sorted(place.path.iterdir()):
        # swtpm gives a new state its name when it is whole: what was listed may be gone.
        with suppress(FileNotFoundError):
            if not path.name.startswith(".") and stat.S_ISREG(path.lstat().st_mode):
                yield path


def store(folder: Path, held: Iterable[Held]) -> tuple[SideFile, ...]:
    """Write them into a record's folder; raises ``StorageFailed``."""
    with durable.failing_as_storage(folder):
        for each in held:
            durable.write(folder / f"{each.kind}.{each.name}", each.content)
        return stored_in(folder)


def stored_in(folder: Path) -> tuple[SideFile, ...]:
    """Return what ``store`` wrote into a folder; nothing for one that is not there."""
    sides = []
    for path in sorted(folder.iterdir()) if durable.is_there(folder) else ():
        kind, _, name = path.name.partition(".")
        if kind in set(SideKind):
            side = SideFile(
                kind=SideKind(kind),
                name=name,
                size_bytes=path.stat().st_size,
                checksum=checksum.of_file(path, Silent()),
            )
            sides.append(side)
    return tuple(sides)


def require_whole(folder: Path, side: SideFile) -> bytes:
    """Return a record's file; raise ``RecordUnusable`` when it is not what was written."""
    path = folder / side.file
    try:
        content = durable.read(path, LIMIT_BYTES)
        is_right = checksum.is_right(path, side.checksum, Silent())
    except (OSError, ValueError) as error:
        why = f"it cannot be read ({error})"
        raise RecordUnusable(path=str(path), why=why, is_of_part=True) from error
    if len(content) != side.size_bytes or not is_right:
        why = "it has changed since it was taken"
        raise RecordUnusable(path=str(path), why=why, is_of_part=True)
    return content


def set_aside(aside: Path, places: Iterable[SidePlace]) -> None:
    """Keep what a domain that stands still or is off has now; a folder that exists is complete.

    Raises ``StorageFailed``.
    """
    fresh = durable.unfinished(aside)
    with durable.failing_as_storage(aside), crashpoint.around("set side files aside"):
        if durable.is_there(aside):
            # Whoever died here may not have come to it, and what it holds is about to be replaced.
            durable.sync_folder(aside.parent)
            return
        shutil.rmtree(fresh, ignore_errors=True)
        durable.make_folder(fresh)
        store(fresh, read(places))
        fresh.rename(aside)
        durable.sync_folder(aside.parent)


def put_back(folder: Path, sides: Iterable[SideFile], places: Iterable[SidePlace]) -> None:
    """Make what the domain, which is off, has of each kind just what a record has.

    May be done again.  A kind of which the domain has no place now, or the record no file, is
    left alone.  Raises ``RecordUnusable`` and ``StorageFailed``.
    """
    kept = tuple(sides)
    for place in places:
        own = [side for side in kept if side.kind is place.kind]
        with durable.failing_as_storage(place.path):
            if not own or not durable.is_there(_needed(place)):
                continue
        contents = {side.name: require_whole(folder, side) for side in own}
        with durable.failing_as_storage(place.path), crashpoint.around(f"put {place.kind} back"):
            _put(place, contents)


def _needed(place: SidePlace) -> Path:
    """Return what has to be there already: snapvm makes the file of a place, and nothing else."""
    return place.path.parent if place.shape is SideShape.FILE else place.path


def _put(place: SidePlace, contents: Mapping[str, bytes]) -> None:
    """Make what is at a place just these files; a file and a device are one, of any name."""
    match place.shape:
        case SideShape.DEVICE:
            for content in contents.values():
                _overwrite(place.path, content)
        case SideShape.FILE:
            for content in contents.values():
                _replace(place.path, content)
            durable.sync_folder(place.path.parent)
        case SideShape.FOLDER:
            for name, content in contents.items():
                _replace(place.path / name, content)
            for path in _files(place):
                if path.name not in contents:
                    path.unlink()
            durable.sync_folder(place.path)


def _overwrite(path: Path, content: bytes) -> None:
    """Write a device; whoever is killed in the middle of it has it done again."""
    with _device(path, os.O_WRONLY) as descriptor:
        durable.rewrite(descriptor, memoryview(content), 0)
        os.fsync(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another in one step, with its owner, mode and label.

    Where there is none it gets the owner of its folder, whose program it is for.
    """
    fresh = durable.unfinished(path)
    model = path if durable.is_there(path) else path.parent
    status = model.stat()
    with os.fdopen(durable.create(fresh), "wb") as file:
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fchmod(file.fileno(), status.st_mode & 0o666)
        with suppress(OSError):  # most hosts have no such labels
            os.setxattr(file.fileno(), _LABEL, os.getxattr(model, _LABEL))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
