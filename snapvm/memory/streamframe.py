"""The parts of an xl image around the stream that Xen's own saver writes.

xl and libxl put headers and the configuration before it, and records behind it: one with the state
of an HVM domain's QEMU, and the last one (docs/specs/libxl-migration-stream.pandoc).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from snapvm import durable
from snapvm.memory import xenimage
from snapvm.memory.pagingmode import Words
from snapvm.memory.xenformat import RECORD_HEADER, TYPE_IS_POPULATED, LibxlRecord
from snapvm.memory.xenimage import ImageWriter
from snapvm.memory.xenrecord import PageBatch
from snapvm.memory.xenwriter import ByteSink
from snapvm.xenguest import WrittenImage

_BLOCK_SHIFT: Final = 12


class StreamFrame:
    """One image; fulfils ``StreamImage``."""

    def __init__(self, path: Path, definition: str) -> None:
        """Make the file, with what comes before the stream; raise ``OSError``."""
        self._path = path
        self._file = os.fdopen(durable.create(path), "w+b", buffering=0)
        self.descriptor = self._file.fileno()
        with ExitStack() as undo:
            undo.callback(self._file.close)
            ImageWriter(self._file, definition)
            undo.pop_all()

    def end_stream(self, device_model: bytes) -> WrittenImage:
        """See ``StreamImage.end_stream``."""
        self._file.seek(0, os.SEEK_END)
        sink = ByteSink(self._file)
        if device_model:
            sink.write(xenimage.device_model_record(device_model))
        sink.write(RECORD_HEADER.pack(LibxlRecord.END, 0))
        os.fsync(self.descriptor)
        return WrittenImage(
            size_bytes=os.fstat(self.descriptor).st_size,
            restored_frames=_restored_frames(self._path),
        )

    def redefine(self, definition: str) -> None:
        """See ``StreamImage.redefine``."""
        xenimage.redefine(self._path, definition)

    def close(self) -> None:
        """See ``StreamImage.close``."""
        self._file.close()


def _restored_frames(path: Path) -> int:
    """Return ``WrittenImage.restored_frames`` of an image; raise ``BadImage`` for one cut short."""
    seen = _Frames()
    with xenimage.open_image(path) as image:
        for record in image.records(with_pages=False):
            if isinstance(record, PageBatch):
                seen.add(record.pfns[TYPE_IS_POPULATED[record.types]])
    return seen.count


class _Frames:
    """A set of frames, which may be anywhere, in blocks of a page of memory each."""

    def __init__(self) -> None:
        self._blocks: dict[int, npt.NDArray[np.bool_]] = {}

    @property
    def count(self) -> int:
        """How many frames are in it."""
        return sum(int(np.count_nonzero(block)) for block in self._blocks.values())

    def add(self, pfns: Words) -> None:
        """Put frames in; those that are in it already stay."""
        blocks = pfns >> np.uint64(_BLOCK_SHIFT)
        for number in np.unique(blocks).tolist():
            block = self._blocks.setdefault(number, np.zeros(1 << _BLOCK_SHIFT, np.bool_))
            block[pfns[blocks == number] - np.uint64(number << _BLOCK_SHIFT)] = True
