"""Sizes, times and foreign text, as people read them."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm.cli import words
from tests.fakes.records import BEGIN


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 << 20, "10 MiB"),
        (137363456, "131 MiB"),
        (1 << 30, "1.0 GiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (1536 << 30, "1.5 TiB"),
        (1 << 63, "8.0 EiB"),
        (1 << 80, "1048576 EiB"),
    ],
)
def test_a_size_is_told_in_the_unit_that_fits(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04, "0.0 ms"),
        (9.94, "9.9 ms"),
        (9.96, "10 ms"),
        (84.2, "84 ms"),
        (999.6, "1.0 s"),
        (3214, "3.2 s"),
        (59_400, "59 s"),
        (59_600, "1 min 0 s"),
        (125_000, "2 min 5 s"),
        (4_320_000, "1 h 12 min"),
    ],
)
def test_milliseconds_are_told_in_the_unit_that_fits(value: float, text: str) -> None:
    assert words.milliseconds(value) == text


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (timedelta(seconds=2), "just now"),
        (timedelta(seconds=-9), "in the future"),
        (timedelta(seconds=59), "59 seconds ago"),
        (timedelta(minutes=1), "1 minute ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=40), "40 days ago"),
        (timedelta(days=100), "3 months ago"),
        (timedelta(days=1000), "2 years ago"),
    ],
)
def test_age_is_told_in_one_unit(passed: timedelta, text: str) -> None:
    assert words.age(BEGIN.isoformat(), BEGIN + passed) == text


@pytest.mark.parametrize("created", ["", "yesterday\x1b", "0001-01-01T00:00:00+14:00", "9999"])
def test_a_strange_time_is_shown_as_it_is(created: str) -> None:
    assert words.local_time(created).isprintable()
    assert words.age(created, BEGIN)


@given(st.text())
def test_plain_is_printable_and_keeps_what_was(text: str) -> None:
    assert words.plain(text).isprintable()
    if text.isprintable():
        assert words.plain(text) == text


@given(st.text(), st.integers(3, 40))
def test_shortened_fits(text: str, columns: int) -> None:
    shown = words.shortened(words.plain(text), columns)
    assert words.width(shown) <= columns


def test_what_is_counted_has_its_plural() -> None:
    assert [words.counted(n, "disk") for n in (0, 1, 2)] == ["no disks", "1 disk", "2 disks"]


def test_a_time_on_a_clock_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes no zone a day from UTC, as which libc reads this."""
    monkeypatch.setenv("TZ", "GMT+0530")
    time.tzset()
    try:
        assert words.local_time("2026-11-22T20:17:55+00:00") == "2026-11-22T20:17:55+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()
