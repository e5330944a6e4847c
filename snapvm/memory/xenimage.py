"""Xen's save file as `xl save` writes it and `xl restore` takes it, around the libxc stream.

    magic, header (48 bytes) | u32 length, configuration, NUL        what xl reads
    libxl header (16) | LIBXC_CONTEXT record (8)                     what libxl reads
    the libxc stream up to its END                                   `snapvm.memory.xenstream`
    emulator records of an HVM domain | END record (8)

The configuration is JSON and is parsed as a C string, so blanks before its NUL are legal.  snapvm
pads it with blanks, so that `replace_config` can replace it without moving gigabytes.

Sources (xen.git): tools/xl/xl.h, xl_saverestore.c (save_domain_core_writeconfig), xl_vmcontrol.c
(create_domain); tools/libs/light/libxl_stream_read.c; docs/specs/libxl-migration-stream.pandoc.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from snapvm import durable
from snapvm.failures import StorageFailed
from snapvm.memory.bytesource import ByteSource
from snapvm.memory.xenformat import (
    CONFIG_LENGTH,
    EMULATOR_HEADER,
    EMULATOR_QEMU,
    LIBXL_BIG_ENDIAN,
    LIBXL_CONVERTED,
    LIBXL_HEADER,
    LIBXL_IDENT,
    LIBXL_VERSION,
    RECORD_ALIGN_BYTES,
    RECORD_HEADER,
    XL_BYTEORDER,
    XL_HEADER,
    XL_MAGIC,
    DomainType,
    LibxlRecord,
    RecordType,
    XlFlag,
)
from snapvm.memory.xenrecord import Blob, PvInfo, Record, StreamHeader
from snapvm.memory.xenstream import read_header, read_records
from snapvm.memory.xenwriter import ByteSink, DomainTail, StreamWriter
from snapvm.refusals import BadImage

CONFIG_PADDING_BYTES: Final = 8192
_MAX_CONFIG_BYTES: Final = 1 << 20
_MAX_EMULATOR_BYTES: Final = 128 << 20
_ALL_FLAGS: Final = int(XlFlag.CONFIG_IS_JSON | XlFlag.STREAM_V2)
_EMULATOR: Final = {LibxlRecord.EMULATOR_XENSTORE_DATA, LibxlRecord.EMULATOR_CONTEXT}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorRecord:
    """Where the xenstore keys or the state of QEMU are in the file, for an HVM domain."""

    type: LibxlRecord
    emulator_id: int
    index: int
    offset_bytes: int
    length_bytes: int


class ImageReader:
    """Reads an image once, from beginning to end."""

    def __init__(self, source: ByteSource) -> None:
        """Read everything before the first record; raise `BadImage` for any other file."""
        self._source = source
        self.config = _read_xl_header(source)
        """The configuration without padding and NUL; empty when the file has none."""
        self.config_offset_bytes = len(XL_MAGIC) + XL_HEADER.size + CONFIG_LENGTH.size
        _read_libxl_header(source)
        self.header: StreamHeader = read_header(source)

    def records(self, *, with_pages: bool = True) -> Iterator[Record | EmulatorRecord]:
        """Yield all records to the end of the image; can be called once."""
        yield from read_records(self._source, self.header, with_pages=with_pages)
        yield from self._rest()

    @property
    def end_offset_bytes(self) -> int:
        """The offset of the next byte to read; after all records, the end of the image."""
        return self._source.offset_bytes

    def _rest(self) -> Iterator[EmulatorRecord]:
        source = self._source
        while True:
            start = source.offset_bytes
            type_, length_bytes = _read_libxl_record(source)
            if type_ is LibxlRecord.END:
                if length_bytes:
                    raise source.bad("an END record with a body", at=start)
                return
            if type_ not in _EMULATOR or self.header.domain_type is not DomainType.HVM:
                raise source.bad(f"a {type_.name} record has no place here", at=start)
            if not EMULATOR_HEADER.size <= length_bytes <= _MAX_EMULATOR_BYTES:
                raise source.bad(f"a {type_.name} record of {length_bytes} bytes", at=start)
            emulator_id, index = EMULATOR_HEADER.unpack(
                source.read(EMULATOR_HEADER.size, "an emulator record")
            )
            offset_bytes, body_bytes = source.offset_bytes, length_bytes - EMULATOR_HEADER.size
            source.skip(body_bytes + -length_bytes % RECORD_ALIGN_BYTES, "an emulator record")
            yield EmulatorRecord(
                type=type_,
                emulator_id=emulator_id,
                index=index,
                offset_bytes=offset_bytes,
                length_bytes=body_bytes,
            )


@contextmanager
def open_image(path: Path) -> Iterator[ImageReader]:
    """Open an image to read it; links are not followed, and a pipe is not waited for."""
    with durable.failing_as_storage(path):
        descriptor = durable.open_file(path)
    with open(descriptor, "rb", buffering=1 << 16) as stream:
        yield ImageReader(ByteSource(stream, str(path)))


def cpuid_policy(path: Path) -> bytes:
    """Return the CPUID leaves (xen_cpuid_leaf_t) of an image's domain; none in an old image.

    They come before the first page.  Raises `BadImage`.
    """
    with open_image(path) as image:
        for record in image.records(with_pages=False):
            if isinstance(record, Blob) and record.type is RecordType.X86_CPUID_POLICY:
                return record.body
            if not isinstance(record, (Blob, PvInfo)):
                break
    return b""


def check(path: Path, size_bytes: int) -> None:
    """Raise ``BadImage`` when this is not the whole image that was recorded."""
    with open_image(path), durable.failing_as_storage(path):
        found_bytes = path.stat().st_size
    if found_bytes != size_bytes:
        raise BadImage(
            path=str(path),
            offset_bytes=min(found_bytes, size_bytes),
            why=f"it has {found_bytes} bytes and {size_bytes} were recorded",
        )


def require_end(path: Path) -> None:
    """Read every record of an image, without pages; raise ``BadImage`` when it ends too early."""
    with open_image(path) as image:
        for _ in image.records(with_pages=False):
            pass


class ImageWriter(StreamWriter):
    """Writes an image of a PV domain: `begin`, `pages`..., `finish`, as `StreamWriter` does."""

    def __init__(self, stream: BinaryIO, config: str, *, is_sparse: bool = False) -> None:
        """Write everything before the libxc stream; ``config`` is the JSON of ``xl list -l``.

        With ``is_sparse`` zero pages become holes; ``stream`` must then be a new file.
        """
        super().__init__(ByteSink(stream, is_sparse=is_sparse))
        before_bytes = len(XL_MAGIC) + XL_HEADER.size + CONFIG_LENGTH.size
        # This padding makes records begin at multiples of their alignment in the file too.
        odd_bytes = -(before_bytes + len(_c_string(config, 0))) % RECORD_ALIGN_BYTES
        body = _c_string(config, CONFIG_PADDING_BYTES + odd_bytes)
        self._sink.write(
            XL_MAGIC
            + XL_HEADER.pack(XL_BYTEORDER, _ALL_FLAGS, 0, CONFIG_LENGTH.size + len(body))
            + CONFIG_LENGTH.pack(len(body))
            + body
        )
        self._sink.write(LIBXL_HEADER.pack(LIBXL_IDENT, LIBXL_VERSION, 0))
        self._sink.write(RECORD_HEADER.pack(LibxlRecord.LIBXC_CONTEXT, 0))

    def finish(self, tail: DomainTail) -> None:
        """Write the tail, and the END record of each stream."""
        super().finish(tail)
        self._sink.write(RECORD_HEADER.pack(LibxlRecord.END, 0))


def device_model_record(state: bytes) -> bytes:
    """Return the record with the state of an HVM domain's QEMU."""
    body = EMULATOR_HEADER.pack(EMULATOR_QEMU, 0) + state
    header = RECORD_HEADER.pack(LibxlRecord.EMULATOR_CONTEXT, len(body))
    return header + body + bytes(-len(body) % RECORD_ALIGN_BYTES)


def replace_config(path: Path, config: str) -> bool:
    """Replace the configuration in an image; return False when there is no room for the new one."""
    with open_image(path) as image:
        start = image.config_offset_bytes
    try:
        with open(path, "r+b", opener=durable.no_link) as stream:
            stream.seek(start - CONFIG_LENGTH.size)
            (room_bytes,) = CONFIG_LENGTH.unpack(stream.read(CONFIG_LENGTH.size))
            padding_bytes = room_bytes - len(config.encode()) - 1
            if padding_bytes < 0:
                return False
            stream.write(_c_string(config, padding_bytes))
    except OSError as error:
        raise StorageFailed(path=str(path), why=error.strerror or str(error)) from error
    return True


def redefine(path: Path, config: str) -> None:
    """Replace the configuration in an image on the disk; raise `BadImage` when it has no room."""
    if not replace_config(path, config):
        why = "there is no room in it for the configuration as it is now"
        raise BadImage(path=str(path), offset_bytes=0, why=why)
    with durable.failing_as_storage(path):
        durable.sync_file(path)


def _c_string(config: str, padding_bytes: int) -> bytes:
    body = config.encode()
    if b"\0" in body:
        raise ValueError("a configuration with a NUL in it")
    return body + b" " * padding_bytes + b"\0"


def _read_xl_header(source: ByteSource) -> str:
    if source.read(len(XL_MAGIC), "the magic of an xl image") != XL_MAGIC:
        raise source.bad("this is not an image of `xl save`", at=0)
    start = source.offset_bytes
    byteorder, flags, _, optional_bytes = XL_HEADER.unpack(
        source.read(XL_HEADER.size, "the xl header")
    )
    if byteorder != XL_BYTEORDER:
        raise source.bad("the image is of a host of another byte order", at=start)
    if flags & ~_ALL_FLAGS or not flags & XlFlag.STREAM_V2:
        raise source.bad(f"the image's flags {flags:#x} are not those of a v2 stream", at=start + 4)
    if optional_bytes > _MAX_CONFIG_BYTES:
        raise source.bad(f"a configuration of {optional_bytes} bytes", at=start + 12)
    data = source.read(optional_bytes, "the configuration")
    if not data:
        return ""
    length_at = start + XL_HEADER.size
    if len(data) < CONFIG_LENGTH.size or CONFIG_LENGTH.unpack_from(data)[0] > (
        len(data) - CONFIG_LENGTH.size
    ):
        raise source.bad("the configuration is longer than its room", at=length_at)
    (length_bytes,) = CONFIG_LENGTH.unpack_from(data)
    text = data[CONFIG_LENGTH.size : CONFIG_LENGTH.size + length_bytes].split(b"\0")[0]
    try:
        return text.decode().rstrip()
    except UnicodeDecodeError as error:
        at = length_at + CONFIG_LENGTH.size + error.start
        raise source.bad("the configuration is not UTF-8", at=at) from error


def _read_libxl_header(source: ByteSource) -> None:
    start = source.offset_bytes
    ident, version, options = LIBXL_HEADER.unpack(
        source.read(LIBXL_HEADER.size, "the libxl header")
    )
    if ident != LIBXL_IDENT or version != LIBXL_VERSION:
        raise source.bad("no libxl stream of version 2 begins here", at=start)
    if options & LIBXL_BIG_ENDIAN or options & ~LIBXL_CONVERTED:
        raise source.bad(f"the libxl header's options are {options:#x}", at=start + 12)
    start = source.offset_bytes
    type_, length_bytes = _read_libxl_record(source)
    if type_ is not LibxlRecord.LIBXC_CONTEXT or length_bytes:
        raise source.bad("the first libxl record is not an empty LIBXC_CONTEXT", at=start)


def _read_libxl_record(source: ByteSource) -> tuple[LibxlRecord, int]:
    start = source.offset_bytes
    number, length_bytes = RECORD_HEADER.unpack(
        source.read(RECORD_HEADER.size, "a libxl record's header")
    )
    if number not in set(LibxlRecord):
        raise source.bad(f"libxl record type {number:#x} is unknown", at=start)
    return LibxlRecord(number), length_bytes
