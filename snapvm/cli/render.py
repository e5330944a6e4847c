"""Draw tables and progress at a terminal; the only importer of rich."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, TextIO, cast

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from snapvm.cli import columns, output
from snapvm.cli.columns import DAMAGED, HEADERS, KIND, RIGHT, Row
from snapvm.cli.words import plain, shortened
from snapvm.interrupt import shielded
from snapvm.model import Progress, RecordKind

_STYLES = {
    RecordKind.DISKS.value: "yellow",
    RecordKind.UNDO.value: "dim",
    DAMAGED: "bold red",
}

_ASCII_LINES = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""SIMPLE_HEAD in ASCII: rich draws into a string, and does not know what the terminal can show."""

_NOTE_COLUMNS = 12
"""The least useful width of a note; where there is less room it stands below its row."""

_INDENT = "  "

_GAP_COLUMNS = 2
"""Between two columns: the box's divider and a cell's padding."""


def table(rows: Sequence[Row]) -> str:
    """Return ``snapvm list`` as a table for standard output, coloured unless NO_COLOR is set.

    The usual terminal has 80 columns, and the row of a snapshot without a name 78.
    """
    widths = columns.column_widths(rows)
    before_note = sum(widths[:-1]) + _GAP_COLUMNS * (len(widths) - 1)
    terminal = shutil.get_terminal_size().columns
    for_note = max(terminal - before_note, 0)
    has_notes = for_note >= min(widths[-1], _NOTE_COLUMNS)
    ruled = box.SIMPLE_HEAD if output.is_unicode(sys.stdout) else _ASCII_LINES
    drawn = Table(box=ruled, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    shown = len(HEADERS) if has_notes else len(HEADERS) - 1
    for number, header in enumerate(HEADERS[:shown]):
        drawn.add_column(Text(header), justify="right" if number in RIGHT else "left", no_wrap=True)
    for row in rows:
        cells = [*row[:-1], shortened(row[-1], for_note)]
        # A cell is plain text: rich must not take a user's note such as [red] for markup.
        drawn.add_row(*map(Text, cells[:shown]), style=_STYLES.get(row[KIND]))
    # A narrower terminal folds the lines, which is better than an id cut short: it can be copied.
    text = io.StringIO()
    # Without a height rich would ignore the width where TERM=dumb, and take 80 columns.
    console = Console(file=text, force_terminal=True, width=before_note + for_note, height=1)
    console.print(drawn)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    if not has_notes:
        lines = [*lines[: -len(rows)], *_above_notes(lines[-len(rows) :], rows, terminal)]
    return "".join(f"{line}\n" for line in lines)


def _above_notes(lines: Iterable[str], rows: Iterable[Row], terminal: int) -> Iterator[str]:
    """Yield the line of each row, and its note below it."""
    room = max(terminal - len(_INDENT), _NOTE_COLUMNS)
    for line, row in zip(lines, rows, strict=True):
        yield line
        if row[-1]:
            yield f"{_INDENT}{shortened(row[-1], room)}"


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield a progress that is drawn on standard error, a terminal."""
    bars = Bars(
        SpinnerColumn("dots" if output.is_unicode(sys.stderr) else "line", finished_text=" "),
        TextColumn("{task.fields[words]}", markup=False),
        BarColumn(bar_width=30),
        _Bytes(binary_units=True),
        TimeElapsedColumn(),
        console=Console(file=cast("IO[str]", _Screen(sys.stderr))),
        # The bar vanishes when the command ends; only the line of result stays.
        transient=True,
    )
    try:
        with shielded():  # it hides the cursor
            bars.start()
        yield _Drawn(bars)
    finally:
        with shielded():
            bars.stop()


class _Screen:
    """A terminal that may go away, as when ssh is cut off, or stop, and the command goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        output.draw(text, self._stream)
        return len(text)

    def flush(self) -> None:
        """Do nothing: what is written is on its way."""

    def __getattr__(self, name: str) -> Any:
        """Take everything else from the stream."""
        return getattr(self._stream, name)


class _Bytes(DownloadColumn):
    """How many bytes of how many are done; empty for a step that does not report bytes."""

    def render(self, task: Task) -> Text:
        """Draw the bytes of one step."""
        return super().render(task) if task.total else Text("")


class _Drawn:
    """Progress on a terminal: one line, a phase at a time."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def phase(self, text: str) -> None:
        """Begin another step, with a spinner until it reports bytes."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task("", total=None, words=plain(text))

    def advance(self, done_bytes: int, total_bytes: int) -> None:
        """Move the bar of the step."""
        if self._task is not None:
            self._bars.update(self._task, completed=done_bytes, total=total_bytes or None)
