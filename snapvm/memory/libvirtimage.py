"""libvirt's save image: a header, the domain's XML, a cookie, and QEMU's migration stream.

Layout of the header (libvirt, src/qemu/qemu_saveimage.h): 16 bytes of magic; then 32 bits each for
the version, the length of XML and cookie, whether the domain was running, the format of the stream,
and the offset of the cookie; then 56 unused bytes.  The integers have the writer's byte order: ours
are little endian, and libvirt reads both.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapvm import compression, durable
from snapvm.compression import Compression
from snapvm.refusals import BadImage

MAGIC: Final = b"LibvirtQemudSave"
PARTIAL: Final = b"LibvirtQemudPart"
_HEADER: Final = struct.Struct("<16s5I56x")
_SWAPPED_HEADER: Final = struct.Struct(">16s5I56x")
"""Of a writer whose byte order is big endian."""
_NUMBER: Final = struct.Struct("<I")
_SWAPPED_NUMBER: Final = struct.Struct(">I")
_VERSION_OFFSET_BYTES: Final = 16
_LENGTH_OFFSET_BYTES: Final = 20
_RUNNING_OFFSET_BYTES: Final = 24
FORMAT_OFFSET_BYTES: Final = 28
_VERSIONS: Final = (1, 2)
FORMAT_RAW: Final = 0
FORMAT_ZSTD: Final = 5
"""libvirt passes the stream through `zstd -dc` (src/qemu/qemu_saveimage.c)."""
FORMAT_SPARSE: Final = 6
"""QEMU's mapped-ram, each page at its own place in the file (libvirt 11.2)."""
UNPACKED_BY: Final = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", FORMAT_ZSTD: "zstd"}
"""The program through which libvirt passes a stream; it writes these itself if qemu.conf says so
(``snapshot_image_format``)."""
_ROOM_BYTES: Final = 64 << 10
"""Room behind the XML, as libvirt leaves it: `virsh save-image-edit` may make the XML longer."""
_ALIGNMENT_BYTES: Final = 4096
_DATA_LIMIT_BYTES: Final = 16 << 20
"""No real image has more XML and cookie than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 92 bytes of an image."""

    data_bytes: int
    was_running: bool
    format: int
    cookie_offset_bytes: int
    """Where the cookie begins in the data behind the header; 0 when there is none."""
    number: struct.Struct
    """How the writer of the image wrote each of the numbers."""

    @property
    def stream_offset_bytes(self) -> int:
        """Where QEMU's stream begins."""
        return _HEADER.size + self.data_bytes


def read_header(path: Path) -> Header:
    """Read and check the header of a complete image; raise ``BadImage``."""
    with _opened(path, os.O_RDONLY) as descriptor:
        text = os.pread(descriptor, _HEADER.size, 0)
        size_bytes = os.fstat(descriptor).st_size
    if len(text) < _HEADER.size:
        raise _bad(path, len(text), "the file ends within the header")
    is_swapped = _SWAPPED_NUMBER.unpack_from(text, _VERSION_OFFSET_BYTES)[0] in _VERSIONS
    layout, number = (_SWAPPED_HEADER, _SWAPPED_NUMBER) if is_swapped else (_HEADER, _NUMBER)
    magic, version, data_bytes, was_running, format_, cookie = layout.unpack(text)
    if magic == PARTIAL:
        raise _bad(path, 0, "it was never written to its end")
    if magic != MAGIC:
        raise _bad(path, 0, "it is not a libvirt save image")
    if version not in _VERSIONS:
        raise _bad(path, _VERSION_OFFSET_BYTES, f"version {version} is not known")
    header = Header(
        data_bytes=data_bytes,
        was_running=bool(was_running),
        format=format_,
        cookie_offset_bytes=cookie,
        number=number,
    )
    if data_bytes > _DATA_LIMIT_BYTES or header.stream_offset_bytes >= size_bytes:
        raise _bad(path, _LENGTH_OFFSET_BYTES, f"{data_bytes} bytes of XML do not fit the file")
    return header


def _bad(path: Path, offset_bytes: int, why: str) -> BadImage:
    return BadImage(path=str(path), offset_bytes=offset_bytes, why=why)


def is_one(path: Path) -> bool:
    """Tell whether a file begins like a libvirt image, which may be incomplete."""
    if not path.is_file():
        return False  # opening a pipe would wait for its writer
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) in (MAGIC, PARTIAL)
    except OSError:
        return False


def read_definition(path: Path) -> str:
    """Return the XML of the domain in an image; raise ``BadImage``."""
    header = read_header(path)
    with _opened(path, os.O_RDONLY) as descriptor:
        text = durable.read_at(descriptor, header.data_bytes, _HEADER.size)
    try:
        return text.partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise _bad(path, _HEADER.size + error.start, "its XML is not UTF-8") from None


def read_cookie(path: Path) -> str:
    """Return libvirt's own text beside the XML, empty when there is none; raise ``BadImage``.

    Bytes that are not UTF-8 are replaced: a restore has libvirt itself judge the cookie.
    """
    header = read_header(path)
    if not 0 < header.cookie_offset_bytes < header.data_bytes:
        return ""
    with _opened(path, os.O_RDONLY) as descriptor:
        data = durable.read_at(descriptor, header.data_bytes, _HEADER.size)
    text = data[header.cookie_offset_bytes :]
    return text.partition(b"\0")[0].decode(errors="replace")


def check(path: Path, size_bytes: int) -> None:
    """Raise ``BadImage`` when this is not the whole image that was recorded."""
    read_header(path)
    with durable.failing_as_storage(path):
        found_bytes = path.stat().st_size
    if found_bytes != size_bytes:
        why = f"it has {found_bytes} bytes and {size_bytes} were recorded"
        raise _bad(path, min(found_bytes, size_bytes), why)


def set_running(path: Path, running: bool) -> None:
    """Set in the header whether a restore lets the domain run; libvirt's own snapshot says no."""
    number = read_header(path).number
    with _opened(path, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, number.pack(running), _RUNNING_OFFSET_BYTES)
        os.fsync(descriptor)


def head_as(path: Path, format_: int) -> bytes:
    """Return the part before the stream, changed to another format and marked as incomplete.

    Raises as `read_header` does.
    """
    header = read_header(path)
    with _opened(path, os.O_RDONLY) as descriptor:
        head = bytearray(durable.read_at(descriptor, header.stream_offset_bytes, 0))
    head[: len(PARTIAL)] = PARTIAL
    header.number.pack_into(head, FORMAT_OFFSET_BYTES, format_)
    return bytes(head)


def mark_whole(descriptor: int, *, is_interim: bool = False) -> int:
    """Bring an image to the disk and mark it as whole; return its size in bytes.

    An interim image, which another one replaces at once, need not be on the disk.
    """
    if not is_interim:
        os.fsync(descriptor)
    os.pwrite(descriptor, MAGIC, 0)
    if not is_interim:
        os.fsync(descriptor)
    return os.fstat(descriptor).st_size


class Writer:
    """Writes an image around a stream that QEMU or libvirt writes; see ``ImageWriter``."""

    def __init__(self, how: Compression = compression.NONE, *, is_interim: bool = False) -> None:
        self.filter_argv: Sequence[str] = how.argv
        self._is_interim = is_interim

    def begin(self, path: Path, definition: str, cookie: str) -> int:
        """Write the part before the stream, marked as incomplete.

        Returns a descriptor, positioned behind that part, which the caller closes.  Raises
        ``StorageFailed``.
        """
        xml = definition.encode() + b"\0"
        rest = cookie.encode() + b"\0" if cookie else b""
        end = _HEADER.size + len(xml) + len(rest) + _ROOM_BYTES
        end += -end % _ALIGNMENT_BYTES
        cookie_offset_bytes = len(xml) if cookie else 0
        format_ = FORMAT_ZSTD if self.filter_argv else FORMAT_RAW
        data_bytes, was_running = end - _HEADER.size, False
        header = _HEADER.pack(
            PARTIAL, _VERSIONS[-1], data_bytes, was_running, format_, cookie_offset_bytes
        )
        with durable.failing_as_storage(path):
            descriptor = durable.create(path)
            try:
                durable.rewrite(descriptor, memoryview(header + xml + rest), 0)
                os.lseek(descriptor, end, os.SEEK_SET)
            except OSError:
                os.close(descriptor)
                raise
        return descriptor

    def end(self, path: Path) -> int:
        """Mark the image as whole; return its size in bytes."""
        with _opened(path, os.O_WRONLY) as descriptor:
            return mark_whole(descriptor, is_interim=self._is_interim)


@contextmanager
def _opened(path: Path, access: int) -> Iterator[int]:
    """Open a file for a block, never through a link; turn ``OSError`` into ``StorageFailed``."""
    with durable.failing_as_storage(path):
        descriptor = durable.open_file(path, access)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
