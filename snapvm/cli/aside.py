"""Write to standard error without waiting for whoever reads it.

A terminal may be stopped (Ctrl-S, the copy mode of screen(1)), or its ssh hang, and a pipe may be
full: whoever writes waits then until somebody reads on.  A domain that stands still, or is off in
the middle of a rollback, must not wait for that; so a thread writes while a command works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import TextIO

from snapvm.cli import output

GOODBYE_SECONDS = 2.0
"""How long what is still to be written is waited for when the work is done."""


@contextmanager
def writing(stream: TextIO) -> Iterator[Callable[[str], None] | None]:
    """Yield what writes to a stream and never waits; None where there can be no such thing."""
    texts: SimpleQueue[str | None] = SimpleQueue()
    try:
        work = partial(_write_all, texts, stream.fileno(), stream.encoding)
        writer = threading.Thread(target=work, name="standard error", daemon=True)
        writer.start()
    except (OSError, RuntimeError):  # the stream is no file, or there are too many threads
        yield None
        return
    try:
        yield texts.put
    finally:
        texts.put(None)
        writer.join(GOODBYE_SECONDS)


def _write_all(texts: SimpleQueue[str | None], descriptor: int, encoding: str) -> None:
    """Write texts up to None; not by the stream, at whose lock the end of Python would wait."""
    while (text := texts.get()) is not None:
        with suppress(OSError):
            output.write_whole(descriptor, text.encode(encoding, "backslashreplace"))
