"""The window drawn: to scale, in order, within its frame."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from snapvm.cli.timeline import COLUMNS, timeline
from snapvm.model import Timing, WindowPart
from tests.fakes.records import TIMING


def bars(timing: Timing, *, is_unicode: bool = False) -> dict[str, str]:
    """Return each part's bar by its name, without the frame."""
    drawn = timeline(timing, is_unicode=is_unicode)[1:]
    return {line.split("|")[0].strip(): line.split("|")[1] for line in drawn if "|" in line}


def test_the_whole_pause_is_the_whole_width() -> None:
    whole = WindowPart(name="all", start_ms=0.0, duration_ms=100.0)
    half = WindowPart(name="half", start_ms=50.0, duration_ms=50.0)
    drawn = bars(Timing(pause_ms=100.0, total_ms=100.0, parts=(whole, half)))
    assert drawn["all"] == "#" * COLUMNS
    assert drawn["half"] == "." * (COLUMNS // 2) + "#" * (COLUMNS // 2)


def test_parts_stand_in_the_order_they_began() -> None:
    assert list(bars(TIMING)) == ["suspend", "memory", "lvm vda", "lvm vdb", "resume"]


def test_ascii_is_ascii() -> None:
    assert "\n".join(timeline(TIMING, is_unicode=False)).isascii()
    assert "█" in "\n".join(timeline(TIMING, is_unicode=True))


def test_what_reaches_beyond_the_window_is_marked() -> None:
    part = WindowPart(name="memory", start_ms=-500.0, duration_ms=5000.0)
    (_, line) = timeline(Timing(pause_ms=10.0, total_ms=1.0, parts=(part,)), is_unicode=False)
    assert f"<{'#' * COLUMNS}>" in line


def test_a_name_without_end_makes_no_line_so_wide() -> None:
    """Every line is as wide as the longest name: `show` of a damaged record took all memory."""
    parts = [WindowPart(name=name, start_ms=1.0, duration_ms=1.0) for name in ("x" * 100_000, "y")]
    drawn = timeline(Timing(pause_ms=9.0, total_ms=9.0, parts=tuple(parts)), is_unicode=False)
    assert all(len(line) < 200 for line in drawn)


def test_nothing_measured_draws_nothing() -> None:
    assert timeline(Timing(pause_ms=0.0, total_ms=1.0), is_unicode=True) == []


times = st.floats(-1e11, 1e11, allow_nan=False)
lengths = st.floats(0, 1e11, allow_nan=False)
parts = st.builds(WindowPart, name=st.text(max_size=5), start_ms=times, duration_ms=lengths)


@settings(max_examples=50)
@given(st.lists(parts, max_size=5), lengths, st.booleans())
def test_any_times_can_be_drawn(found: list[WindowPart], pause_ms: float, is_unicode: bool) -> None:
    timing = Timing(pause_ms=pause_ms, total_ms=1.0, parts=tuple(found))
    lines = timeline(timing, is_unicode=is_unicode)
    assert all(line.isprintable() for line in lines)
    assert len(lines) == (len(found) + 1 if found else 0)
