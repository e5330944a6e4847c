"""The parts of an xl image around the stream that Xen's own saver writes.

xl and libxl put headers and the configuration before it, and one record behind it
(docs/specs/libxl-migration-stream.pandoc).  A PVH domain has no QEMU, whose state would come there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from snapvm import durable
from snapvm.memory.xenformat import RECORD_HEADER, LibxlRecord
from snapvm.memory.xenimage import ImageWriter


class StreamFrame:
    """One image; fulfils ``StreamImage``."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None

    def begin(self, path: Path, definition: str) -> int:
        """See ``StreamImage.begin``."""
        self._file = os.fdopen(durable.create(path), "w+b", buffering=0)
        ImageWriter(self._file, definition)
        return self._file.fileno()

    def end_stream(self) -> int:
        """See ``StreamImage.end_stream``."""
        if self._file is None:
            raise RuntimeError("a stream ends that was not begun")
        self._file.seek(0, os.SEEK_END)
        self._file.write(RECORD_HEADER.pack(LibxlRecord.END, 0))
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """See ``StreamImage.close``."""
        if self._file is not None:
            self._file.close()
            self._file = None
