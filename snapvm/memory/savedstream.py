"""Read the QEMU stream inside a libvirt save image, and unpack it if it is compressed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from snapvm import compression, durable
from snapvm.memory import libvirtimage
from snapvm.memory.libvirtimage import (
    FORMAT_OFFSET_BYTES,
    FORMAT_RAW,
    FORMAT_SPARSE,
    FORMAT_ZSTD,
)
from snapvm.memory.qemuformat import MAGIC, TAIL_BYTES, Section, ends_with_description
from snapvm.memory.qemustream import CUT_SHORT, QemuStream
from snapvm.refusals import BadImage
from snapvm.streamfilter import StreamFilter, is_installed

_BEGIN = MAGIC + bytes([Section.CONFIGURATION])
_PIECE_BYTES = 1 << 20
_END_SECONDS = 60.0
"""How long the program that unpacks may take to end when all that it has said was read."""


@contextmanager
def opened(path: Path) -> Iterator[QemuStream]:
    """Open the stream of a complete image for a block that reads it to its end.

    Raises ``BadImage`` for an image of another format, or that cannot be unpacked;
    ``StorageFailed``; and ``HostLacks`` when the program that unpacks it is missing.  Offsets in
    errors are those that the image would have without compression.
    """
    header = libvirtimage.read_header(path)
    begin = header.stream_offset_bytes
    if header.format not in (FORMAT_RAW, FORMAT_ZSTD):
        why = f"a stream of format {header.format} cannot be read here"
        raise BadImage(path=str(path), offset_bytes=FORMAT_OFFSET_BYTES, why=why)
    with durable.failing_as_storage(path):
        descriptor = durable.open_file(path)
    with open(descriptor, "rb", buffering=0) as file:
        file.seek(begin)
        if header.format == FORMAT_RAW:
            yield QemuStream(file, str(path), offset_bytes=begin)
            return
        with _unpacked(descriptor, path) as stream:
            yield QemuStream(stream, str(path), offset_bytes=begin)


def require_end(path: Path, *, unpacks: bool = False) -> bool:
    """Raise ``BadImage`` for an image whose stream ends before the description of its devices does.

    Returns whether that could be told.  One that is compressed is read only with ``unpacks``, which
    takes as long as a restore.  One that does not begin with the machine's configuration is of a
    kind of machine that has no description either (QEMU, hw/core/machine.c, suppress_vmdesc).
    """
    header = libvirtimage.read_header(path)
    is_packed = header.format == FORMAT_ZSTD
    if is_packed and not (unpacks and is_installed(compression.UNPACK_ARGV[0])):
        return False
    if header.format not in (FORMAT_RAW, FORMAT_SPARSE, FORMAT_ZSTD):
        return False
    with (
        durable.failing_as_storage(path),
        open(durable.open_file(path), "rb", buffering=0) as file,
    ):
        file.seek(header.stream_offset_bytes)
        if is_packed:
            with _unpacked(file.fileno(), path) as stream:
                begin, tail = _ends_of(stream)
        else:
            begin, tail = _ends_of(file)
        end_bytes = file.seek(0, os.SEEK_END)
    if begin == _BEGIN and not ends_with_description(tail):
        raise BadImage(path=str(path), offset_bytes=end_bytes, why=CUT_SHORT)
    return begin == _BEGIN


def _ends_of(stream: BinaryIO) -> tuple[bytes, bytes]:
    """Return how a stream begins, and the last of it; what is between is skipped in a file."""
    begin = tail = stream.read(len(_BEGIN))
    if stream.seekable():
        at = stream.tell()
        stream.seek(max(at, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
    while piece := stream.read(_PIECE_BYTES):
        tail = (tail + piece)[-TAIL_BYTES:]
    return begin, tail


@contextmanager
def _unpacked(source: int, path: Path) -> Iterator[BinaryIO]:
    """Run the program that unpacks a file, from its present position, and yield its output."""
    outlet, inlet = os.pipe2(os.O_CLOEXEC)
    with open(outlet, "rb", buffering=0) as stream:
        try:
            program = StreamFilter(compression.UNPACK_ARGV, source, inlet)
        finally:
            os.close(inlet)
        try:
            yield stream
            program.wait(_END_SECONDS)
        except OSError as why:
            raise BadImage(path=str(path), offset_bytes=0, why=f"unpacking it: {why}") from why
        finally:
            program.close()
