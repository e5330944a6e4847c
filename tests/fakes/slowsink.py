"""What a stream is written to, where that is slow, or hangs."""

from __future__ import annotations

import os
import threading
import time


class SlowSink:
    """A reader that takes a chunk now and then, or nothing yet; what is drained goes there."""

    def __init__(self, rest_seconds: float, *, is_open: bool = True) -> None:
        self._reader, self.writer = os.pipe()
        self._rest_seconds = rest_seconds
        self.opened = threading.Event()
        if is_open:
            self.opened.set()
        self.taken_bytes = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.opened.wait()
        while taken := os.read(self._reader, 1 << 20):
            self.taken_bytes += len(taken)
            time.sleep(self._rest_seconds)
        os.close(self._reader)

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
