"""Which memory image goes with which hypervisor: the one place that knows of several formats."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from snapvm import checksum, compression, crashpoint, durable, streamfilter
from snapvm.compression import Compression
from snapvm.errors import BadSetting
from snapvm.failures import StorageFailed
from snapvm.hypervisor.base import GuestImage, MemoryImage, StreamImage
from snapvm.imageformats import LIBVIRT_SAVE, LIBVIRT_SPARSE, XL_SAVE, ZSTD_SINCE
from snapvm.memory import libvirtimage
from snapvm.memoryroom import HostMemory
from snapvm.model import HypervisorKind, ImageFormat, MemoryRecord, Progress
from snapvm.refusals import BadImage, HostLacks, RecordNewer, RecordUnusable
from snapvm.release import release
from snapvm.xenguest import GuestFrames, HostFacts

log = logging.getLogger(__name__)

_SPARSE_SINCE = {"libvirt": (11, 2), "qemu": (9, 0)}
"""Who reads sparse images (libvirt, NEWS 11.2.0; QEMU, docs/devel/migration/mapped-ram.rst)."""
_READ_SINCE: Mapping[int, Mapping[str, tuple[int, int]]] = {
    libvirtimage.FORMAT_ZSTD: {"libvirt": ZSTD_SINCE},
    libvirtimage.FORMAT_SPARSE: _SPARSE_SINCE,
}
"""The first releases that read these formats; the image may be on an older host by now."""
_NAMES = {"libvirt": "libvirt", "qemu": "QEMU"}
_NO_PLAIN_FROM_QEMU, _PLAIN_AGAIN_SINCE = (11, 0), (12, 1)
"""QEMU 11.0 takes no file as ``fd:`` any more (docs/about/removed-features.rst), by which libvirt
before 12.1 hands it a plain image; a compressed one comes through a pipe."""
_CHANNELS_LEAST = 2
"""With one alone QEMU 10.0 was seen to take ten times as long on a busy host (docs/restore.md)."""
_CHANNELS_LIMIT = 16
"""More threads than that wait for the disk, or for memory, and not for each other."""


def new_image(
    kind: HypervisorKind,
    run_dir: Path,
    how: Compression = compression.NONE,
    *,
    is_interim: bool = False,
    domain_ends: bool = False,
) -> MemoryImage:
    """Return what makes an image for a hypervisor's driver; only libvirt reads compressed ones.

    ``run_dir`` is where captures on this host tell each other what memory they use.  An
    ``is_interim`` image need not be on the disk, since `made_sparse` is going to replace it.
    ``domain_ends`` says that the domain stands still until all is written.
    """
    if is_interim:
        _conversion()  # the package may be another one, or gone, by the time memory is written
    if kind is HypervisorKind.LIBVIRT:
        return libvirtimage.Writer(how, is_interim=is_interim)
    return _XlImages(run_dir, domain_ends=domain_ends)


class _XlImages:
    """Makes images for ``xl restore``; fulfils ``XenImages``."""

    def __init__(self, run_dir: Path, *, domain_ends: bool) -> None:
        self._run_dir = run_dir
        self._domain_ends = domain_ends

    def of_pages(
        self, path: Path, definition: str, host: HostFacts, frames: GuestFrames
    ) -> GuestImage:
        """See ``XenImages.of_pages``."""
        # heavy: numpy, which libvirt's images do without
        from snapvm.memory.guestcapture import GuestCapture

        memory = HostMemory(self._run_dir)
        return GuestCapture(path, definition, host, frames, memory, domain_ends=self._domain_ends)

    def of_stream(self, path: Path, definition: str) -> StreamImage:
        """See ``XenImages.of_stream``."""
        # heavy: numpy, which libvirt's images do without
        from snapvm.memory.streamframe import StreamFrame

        return StreamFrame(path, definition)


def shall_be_sparse(
    kind: HypervisorKind, wanted: ImageFormat, how: Compression, versions: Mapping[str, str]
) -> bool:
    """Decide whether an image is made sparse once its domain runs again.

    Raises ``BadSetting`` for an image that shall be sparse and compressed, or sparse and xl's, and
    ``HostLacks`` for one that could not be restored here.
    """
    if kind is not HypervisorKind.LIBVIRT:
        if wanted is ImageFormat.SPARSE:
            why = "xl reads no sparse images, only libvirt does"
            raise BadSetting(where="image_format", why=why)
        return False
    can = all(release(versions.get(name, "")) >= since for name, since in _SPARSE_SINCE.items())
    if wanted is ImageFormat.SPARSE:
        _require_sparse(how, can=can)
        return True
    if how.argv or _reads_plain(versions):
        return False
    if wanted is ImageFormat.AUTO and can:
        return True
    raise _no_plain(versions, _instead_of_plain(versions, can_be_sparse=can))


def _instead_of_plain(versions: Mapping[str, str], *, can_be_sparse: bool) -> str:
    """Say which other images this libvirt restores; empty when there is none."""
    others = (
        ("--image-format sparse", can_be_sparse),
        ("--compress zstd", release(versions.get("libvirt", "")) >= ZSTD_SINCE),
    )
    options = " or ".join(option for option, is_read in others if is_read)
    return f"take the snapshot with {options}" if options else ""


def _require_sparse(how: Compression, *, can: bool) -> None:
    """Raise ``BadSetting`` or ``HostLacks`` for a sparse image that cannot be had."""
    if how.argv:
        why = "a sparse image is not compressed; leave one of the two out"
        raise BadSetting(where="image_format and compress", why=why)
    if not can:
        readers = " and ".join(_named(name, since) for name, since in _SPARSE_SINCE.items())
        raise HostLacks(
            what=f"{readers}, which restore sparse images",
            remedy="leave --image-format out, and `image_format` in the settings",
        )


def _named(name: str, since: tuple[int, int]) -> str:
    """Return a program and its release as people write them: ``QEMU 9.0``."""
    return f"{_NAMES[name]} {since[0]}.{since[1]}"


def require_reader(path: Path, memory: MemoryRecord, versions: Mapping[str, str]) -> None:
    """Raise ``HostLacks`` when libvirt and QEMU, as they are now, do not restore such an image.

    They would find that out when the domain has ended: libvirt reads no more of one before.
    """
    if memory.format not in (LIBVIRT_SAVE, LIBVIRT_SPARSE):
        return
    format_ = libvirtimage.read_header(path).format
    if format_ == libvirtimage.FORMAT_RAW and not _reads_plain(versions):
        raise _no_plain(versions, "roll back with a QEMU before 11.0 installed")
    for name, since in _READ_SINCE.get(format_, {}).items():
        found = release(versions.get(name, ""))
        if found and found < since:
            what = f"{_named(name, since)}, which restores such memory images (it has "
            raise HostLacks(what=f"{what}{versions[name]})", remedy=f"update {_NAMES[name]}")
    program = libvirtimage.UNPACKED_BY.get(format_, "")
    if program and not streamfilter.is_installed(program):
        what = f"the program {program}, by which libvirt unpacks the memory image"
        raise HostLacks(what=what, remedy=f"install {program}")


def _reads_plain(versions: Mapping[str, str]) -> bool:
    qemu, libvirt = release(versions.get("qemu", "")), release(versions.get("libvirt", ""))
    return qemu < _NO_PLAIN_FROM_QEMU or libvirt >= _PLAIN_AGAIN_SINCE


def _no_plain(versions: Mapping[str, str], otherwise: str) -> HostLacks:
    return HostLacks(
        what=f"{_named('libvirt', _PLAIN_AGAIN_SINCE)}, without which QEMU {versions['qemu']} "
        f"restores no plain memory image (libvirt is {versions.get('libvirt', 'unknown')})",
        remedy=f"update libvirt, or {otherwise}" if otherwise else "update libvirt",
    )


def made_sparse(
    path: Path, memory: MemoryRecord, free_bytes: int, progress: Progress
) -> tuple[MemoryRecord, str]:
    """Convert a libvirt image in place; return what to record, and why it stayed as it was if so.

    There are two files for as long as this takes; a failure leaves the former one.
    """
    if memory.size_bytes > free_bytes:
        _keep(path)
        return memory, "there is no room for a second image while it is converted"
    convert = _conversion()
    fresh = durable.unfinished(path)
    try:
        with crashpoint.around("convert the image"):
            size_bytes = convert(path, fresh, progress)
    except (BadImage, StorageFailed) as why:
        log.warning("the image is not converted: %s", why)
        with durable.failing_as_storage(fresh):
            fresh.unlink(missing_ok=True)
        _keep(path)
        return memory, str(why)
    with crashpoint.around("replace the image"), durable.failing_as_storage(path):
        fresh.replace(path)
        durable.sync_folder(path.parent)
    return replace(memory, format=LIBVIRT_SPARSE, size_bytes=size_bytes), ""


def _conversion() -> Callable[[Path, Path, Progress], int]:
    """Return what makes an image sparse: see ``sparseimage.convert``."""
    # heavy: numpy, which libvirt's images do without
    from snapvm.memory import sparseimage

    return sparseimage.convert


def _keep(path: Path) -> None:
    """Bring an image that was meant to be replaced to the disk."""
    with durable.failing_as_storage(path):
        durable.sync_file(path)


def is_mislabelled(path: Path, memory: MemoryRecord) -> bool:
    """Tell whether libvirt calls sparse what it has written as an ordinary stream.

    It does so with ``snapshot_image_format = "sparse"`` in qemu.conf (libvirt 11.3,
    qemu_snapshot.c, qemuSnapshotCreateActiveExternal), and cannot read it back then.
    """
    if memory.format != LIBVIRT_SAVE:
        return False
    return libvirtimage.read_header(path).format == libvirtimage.FORMAT_SPARSE


def channels(memory: MemoryRecord) -> int:
    """Return how many threads a restore may read an image with."""
    if memory.format != LIBVIRT_SPARSE:
        return 1
    return max(_CHANNELS_LEAST, min(len(os.sched_getaffinity(0)), _CHANNELS_LIMIT))


def check(path: Path, memory: MemoryRecord) -> None:
    """Raise ``BadImage`` when this is not the whole image that was recorded.

    Raises ``RecordUnusable`` for one that is gone, ``RecordNewer`` for one of an unknown format.
    """
    with durable.failing_untouched(path):
        is_there = durable.is_there(path)
    if not is_there:
        raise RecordUnusable(path=str(path), why="the memory image is gone", is_of_part=True)
    if memory.format in (LIBVIRT_SAVE, LIBVIRT_SPARSE):
        libvirtimage.check(path, memory.size_bytes)
    elif memory.format == XL_SAVE:
        # heavy: numpy, which libvirt's images do without
        from snapvm.memory import xenimage

        xenimage.check(path, memory.size_bytes)
    else:
        why = f"this snapvm does not know memory images of the format {memory.format!r}"
        raise RecordNewer(path=str(path), why=why, is_of_part=True)


def cookie(path: Path, memory: MemoryRecord) -> str:
    """Return what an image tells its driver: libvirt's cookie, or xl's configuration.

    Raises ``BadImage``.
    """
    if memory.format != XL_SAVE:
        return libvirtimage.read_cookie(path)
    # heavy: numpy, which libvirt's images do without
    from snapvm.memory import xenimage

    with xenimage.open_image(path) as image:
        return image.config


def processor(path: Path, memory: MemoryRecord) -> bytes:
    """Return the CPUID leaves that an xl image has of its domain's processor, if it has them.

    libvirt tells of the processor in its cookie.  Raises ``BadImage``.
    """
    if memory.format != XL_SAVE:
        return b""
    # heavy: numpy, which libvirt's images do without
    from snapvm.memory import xenimage

    return xenimage.cpuid_policy(path)


def check_contents(path: Path, memory: MemoryRecord, progress: Progress) -> None:
    """Read all of the image; raise ``RecordUnusable`` when it is not what was written."""
    try:
        is_right = checksum.is_right(path, memory.checksum, progress)
    except OSError as error:
        why = f"it cannot be read ({error.strerror})"
        raise RecordUnusable(path=str(path), why=why, is_of_part=True) from error
    if not is_right:
        why = f"it has changed since it was taken (its checksum is not {memory.checksum} any more)"
        raise RecordUnusable(path=str(path), why=why, is_of_part=True)


def seal(path: Path, memory: MemoryRecord, *, running: bool) -> None:
    """Make the image itself say whether its domain runs when anyone restores it, if it can."""
    if memory.format in (LIBVIRT_SAVE, LIBVIRT_SPARSE):
        libvirtimage.set_running(path, running)
