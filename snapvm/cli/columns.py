"""The rows of ``snapvm list``, and their plain form: aligned columns without lines or colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from snapvm.cli.words import local_time, milliseconds, plain, size, width
from snapvm.lvm.health import Health, worst
from snapvm.model import Record
from snapvm.recordfolder import Damaged

HEADERS = ("SNAPSHOT", "CREATED", "KIND", "DISKS", "HEALTH", "MEMORY", "PAUSE", "NOTE")
KIND = HEADERS.index("KIND")
DAMAGED = "damaged"
"""Stands in the column KIND for a record that cannot be read."""
RIGHT = frozenset({HEADERS.index("MEMORY"), HEADERS.index("PAUSE")})
"""The columns of numbers, which are aligned to the right."""

TABLE_LIMIT = 200
"""With more rows than this a terminal gets plain columns too: rich needs 0.3 ms for a cell."""

_DISKS_NAMED = 3
_GAP = "  "

Row = tuple[str, ...]


def sorted_rows(judged: Iterable[tuple[Record, Sequence[Health]]]) -> list[Row]:
    """Return a row for each record with the health of its disks, by domain, the oldest first."""
    keyed = [(record.domain, record.place, _row(record, healths)) for record, healths in judged]
    keyed.sort()
    return [row for *_, row in keyed]


def damaged_rows(damaged: Iterable[Damaged]) -> list[Row]:
    """Return a row for each record that cannot be read."""
    return [
        (plain(f"{entry.domain}@{entry.id}"), "-", DAMAGED, "-", "-", "-", "-", "")
        for entry in damaged
    ]


def _row(record: Record, healths: Sequence[Health]) -> Row:
    pause_ms = record.timing.pause_ms
    return (
        plain(record.ref),
        local_time(record.created),
        record.kind.value,
        _disks([plain(disk.target) for disk in record.disks]),
        _health(healths),
        size(record.written_bytes) if record.memory is not None else "-",
        milliseconds(pause_ms) if pause_ms else "-",
        plain(record.note),
    )


def _disks(targets: Sequence[str]) -> str:
    named = " ".join(targets[:_DISKS_NAMED])
    more = len(targets) - _DISKS_NAMED
    return (f"{named} +{more}" if more > 0 else named) or "-"


def _health(healths: Sequence[Health]) -> str:
    """Return the state of the disk that is worst off, and how full its snapshot is."""
    found = worst(healths)
    if found is None:
        return "-"
    fill = "" if found.fill_percent is None else f" {found.fill_percent:.0f}%"
    return f"{found.state.value}{fill}"


def aligned(rows: Sequence[Row]) -> str:
    """Return the rows below their headers, each column as wide as its widest value."""
    widths = column_widths(rows)
    return "".join(_line(row, widths) for row in (HEADERS, *rows))


def column_widths(rows: Sequence[Row]) -> list[int]:
    """Return how wide each column is, its header included."""
    return [max(map(width, column)) for column in zip(HEADERS, *rows, strict=True)]


def _line(row: Row, widths: Sequence[int]) -> str:
    cells = []
    for number, (cell, columns) in enumerate(zip(row, widths, strict=True)):
        room = " " * (columns - width(cell))
        cells.append(room + cell if number in RIGHT else cell + room)
    return f"{_GAP.join(cells).rstrip()}\n"
