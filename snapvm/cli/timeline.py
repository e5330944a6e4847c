"""Draw the pause of a capture: which of its parts happened when."""

from __future__ import annotations

from snapvm.cli.words import milliseconds, plain, shortened
from snapvm.model import Timing, WindowPart

COLUMNS = 40
"""The width of the drawn pause."""


def timeline(timing: Timing, *, is_unicode: bool) -> list[str]:
    """Return the parts of the pause as bars below one another, in the order they began.

    The scale is the pause; a part that began before it or ended after it is cut at the edge and
    marked ``<`` or ``>``.  Without a pause the scale reaches from the first part to the last.
    """
    if not timing.parts:
        return []
    if timing.pause_ms > 0:
        begin, end = 0.0, timing.pause_ms
    else:
        begin = min(part.start_ms for part in timing.parts)
        end = max(part.start_ms + part.duration_ms for part in timing.parts)
    parts = sorted(timing.parts, key=lambda part: part.start_ms)
    names = [shortened(plain(part.name), COLUMNS) for part in parts]
    indent = max(map(len, names))
    scale = _scale(begin, end, indent)
    bars = [
        f"  {name:<{indent}} {_bar(part, begin, end, is_unicode=is_unicode)} {_numbers(part)}"
        for name, part in zip(names, parts, strict=True)
    ]
    return [scale, *bars]


def _scale(begin: float, end: float, indent: int) -> str:
    left, right = _at(begin), _at(end)
    return f"  {'':<{indent}}  {left}{right:>{COLUMNS - len(left)}}"


def _at(moment_ms: float) -> str:
    return f"{moment_ms:.1f} ms" if abs(moment_ms) < 99.95 else f"{moment_ms:.0f} ms"


def _bar(part: WindowPart, begin: float, end: float, *, is_unicode: bool) -> str:
    full, empty, edge = ("█", "·", "│") if is_unicode else ("#", ".", "|")
    ended = part.start_ms + part.duration_ms
    first = min(int(_column(part.start_ms, begin, end)), COLUMNS - 1)
    last = max(first + 1, round(_column(ended, begin, end)))
    column_ms = (end - begin) / COLUMNS
    left = "<" if part.start_ms < begin - column_ms else edge
    right = ">" if ended > end + column_ms else edge
    return f"{left}{empty * first}{full * (last - first)}{empty * (COLUMNS - last)}{right}"


def _column(moment_ms: float, begin: float, end: float) -> float:
    """Return where a moment stands on the scale, from 0 to ``COLUMNS``."""
    if end <= begin:
        return 0.0
    return COLUMNS * min(max((moment_ms - begin) / (end - begin), 0.0), 1.0)


def _numbers(part: WindowPart) -> str:
    return f"{milliseconds(part.duration_ms):>7} from {_at(part.start_ms)}"
