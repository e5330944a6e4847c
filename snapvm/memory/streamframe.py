"""The frame of an xl image around a stream that Xen's own saver writes.

libxl puts a header and its configuration before libxenguest's stream and one record behind it
(docs/specs/libxl-migration-stream.pandoc); a PV or PVH domain has no device model, whose state
would come in between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from snapvm import durable
from snapvm.memory.xenformat import RECORD_HEADER, LibxlRecord
from snapvm.memory.xenimage import ImageWriter


class StreamFrame:
    """One image whose stream somebody else writes; fulfils ``StreamImage``."""

    def __init__(self) -> None:
        self._stream_file: BinaryIO | None = None

    def begin_stream(self, path: Path, definition: str) -> int:
        """See ``StreamImage.begin_stream``."""
        self._stream_file = os.fdopen(durable.create(path), "w+b", buffering=0)
        ImageWriter(self._stream_file, definition)
        return self._stream_file.fileno()

    def end_stream(self) -> int:
        """See ``StreamImage.end_stream``."""
        file = self._stream_file
        if file is None:
            raise ValueError("a stream ends that was not begun")
        file.seek(0, os.SEEK_END)
        file.write(RECORD_HEADER.pack(LibxlRecord.END, 0))
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size

    def close_stream(self) -> None:
        """See ``StreamImage.close_stream``."""
        if self._stream_file is not None:
            self._stream_file.close()
            self._stream_file = None
