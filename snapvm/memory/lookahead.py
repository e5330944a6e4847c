"""Read a stream with a look at the bytes ahead, and with errors that name the byte."""

from __future__ import annotations

from typing import BinaryIO, Final

from snapvm.failures import StorageFailed
from snapvm.refusals import BadImage

WINDOW_BYTES: Final = 1 << 20


class Lookahead:
    """Reads an unbuffered stream from its present position, which is byte ``offset_bytes``.

    It never uses more memory than one window.  Its methods raise ``BadImage`` when the stream ends
    too early, and ``StorageFailed`` when it cannot be read.
    """

    def __init__(self, stream: BinaryIO, path: str, *, offset_bytes: int = 0) -> None:
        self._stream = stream
        self._path = path
        self._window = bytearray(WINDOW_BYTES)
        self._begin = self._end = 0
        self._is_at_end = False
        self.offset_bytes = offset_bytes

    def peek(self, least_bytes: int = WINDOW_BYTES) -> memoryview:
        """Return the bytes ahead: at least ``least_bytes``, or all that are left.

        The view is good until the next call of ``peek`` or ``read``.
        """
        if self._end - self._begin < least_bytes:
            self._fill()
        return memoryview(self._window)[self._begin : self._end]

    def skip(self, count_bytes: int) -> None:
        """Skip bytes that ``peek`` has returned."""
        self._begin += count_bytes
        self.offset_bytes += count_bytes

    def read(self, count_bytes: int, what: str) -> bytes:
        """Read exactly ``count_bytes``, at most a window; ``what`` names them in an error."""
        found = bytes(self.peek(count_bytes)[:count_bytes])
        self.skip(len(found))
        if len(found) < count_bytes:
            raise self.bad(f"it ends {count_bytes - len(found)} bytes before the end of {what}")
        return found

    def bad(self, why: str, *, back_bytes: int = 0) -> BadImage:
        """Return the error for the position ``back_bytes`` before this one."""
        return BadImage(path=self._path, offset_bytes=self.offset_bytes - back_bytes, why=why)

    def _fill(self) -> None:
        """Fill the window, or read to the end of the stream."""
        left_bytes = self._end - self._begin
        self._window[:left_bytes] = self._window[self._begin : self._end]
        self._begin, self._end = 0, left_bytes
        with memoryview(self._window) as view:
            while self._end < WINDOW_BYTES and not self._is_at_end:
                try:
                    count = self._stream.readinto(view[self._end :])  # type: ignore[attr-defined]
                except OSError as error:
                    why = error.strerror or str(error)
                    raise StorageFailed(path=self._path, why=why) from error
                self._is_at_end = not count
                self._end += count
