"""Read a stream onwards with a look at what comes, and know at which byte it went wrong."""

from __future__ import annotations

from typing import BinaryIO, Final

from snapvm.failures import StorageFailed
from snapvm.refusals import BadImage

WINDOW_BYTES: Final = 1 << 20


class Lookahead:
    """Reads ``stream``, unbuffered itself, from where it is, which is byte ``offset_bytes``.

    One window of memory is all it ever uses.  A stream that ends too early is ``BadImage``, one
    that cannot be read ``StorageFailed``.
    """

    def __init__(self, stream: BinaryIO, path: str, *, offset_bytes: int = 0) -> None:
        self._stream = stream
        self._path = path
        self._window = bytearray(WINDOW_BYTES)
        self._begin = self._end = 0
        self._is_at_end = False
        self.offset_bytes = offset_bytes

    def peek(self, least_bytes: int = WINDOW_BYTES) -> memoryview:
        """Return what comes: at least so many bytes, or all there is.

        Good until the next call of ``peek`` or ``read``.
        """
        if self._end - self._begin < least_bytes:
            self._fill()
        return memoryview(self._window)[self._begin : self._end]

    def skip(self, count_bytes: int) -> None:
        """Pass over bytes that ``peek`` has shown."""
        self._begin += count_bytes
        self.offset_bytes += count_bytes

    def read(self, count_bytes: int, what: str) -> bytes:
        """Read exactly so many bytes of ``what``, at most a window."""
        found = bytes(self.peek(count_bytes)[:count_bytes])
        self.skip(len(found))
        if len(found) < count_bytes:
            raise self.bad(f"it ends {count_bytes - len(found)} bytes before the end of {what}")
        return found

    def bad(self, why: str, *, back_bytes: int = 0) -> BadImage:
        """Make the error for this place, or for one so many bytes before it."""
        return BadImage(path=self._path, offset_bytes=self.offset_bytes - back_bytes, why=why)

    def _fill(self) -> None:
        """Make the window full, or read to the end of the stream."""
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
