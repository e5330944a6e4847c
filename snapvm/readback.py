"""Reading a memory image back while something else is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from snapvm import images
from snapvm.catalog import Catalog
from snapvm.model import MemoryRecord, Progress, Record
from snapvm.workers import workers


def of_record(
    catalog: Catalog, record: Record, progress: Progress, *, is_wanted: bool
) -> AbstractContextManager[Callable[[], None]]:
    """Read the memory image of a record, if it has one and that is wanted; see ``being_read``."""
    memory = record.memory if is_wanted else None
    path = None if memory is None else catalog.path(record, memory.file)
    return being_read(path, memory, progress)


@contextmanager
def being_read(
    path: Path | None, memory: MemoryRecord | None, progress: Progress
) -> Iterator[Callable[[], None]]:
    """Read an image while the block does something else; without one nothing is read.

    Yields what waits for the end of it and raises as `images.check_contents` does.  A block that
    ends earlier ends the reading.
    """
    if path is None or memory is None:
        yield lambda: None
        return
    watched = _Watched(progress)
    with workers(1) as pool:
        try:
            reading = pool.submit(images.check_contents, path, memory, watched)

            def require_right() -> None:
                watched.is_shown = True
                progress.phase("reading the memory image")
                reading.result()

            yield require_right
        finally:
            watched.is_wanted = False


class _Abandoned(Exception):
    """The reading is not wanted any more."""


class _Watched:
    """Progress of something that goes on beside something else: shown once it is waited for."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.is_shown = False
        self.is_wanted = True

    def phase(self, text: str) -> None:
        """See ``Progress``."""
        self._shown.phase(text)

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """See ``Progress``; ends the work when nobody waits for it."""
        if not self.is_wanted:
            raise _Abandoned
        if self.is_shown:
            self._shown.advance(done_bytes, total_bytes)
