"""The stop-watch of a window: what it tells is always something a record can hold."""

from __future__ import annotations

import time

from snapvm.clock import WindowClock


def test_parts_are_told_from_the_stop_on() -> None:
    clock = WindowClock()
    now = time.monotonic()
    clock.stopped(now)
    clock.add_part("lvm vda", now + 0.010, now + 0.030)
    clock.add_part("suspend", now - 0.005, now)
    clock.resumed(now + 0.050)
    timing = clock.timing()
    assert timing.pause_ms == 50.0
    told = [(part.name, part.start_ms, part.duration_ms) for part in timing.parts]
    assert told == [("suspend", -5.0, 5.0), ("lvm vda", 10.0, 20.0)]


def test_a_clock_that_was_set_gives_no_negative_time() -> None:
    clock = WindowClock()
    now = time.monotonic()
    clock.stopped(now)
    clock.resumed(now - 3)
    clock.add_part("resume", now, now - 3)
    timing = clock.timing()
    assert timing.pause_ms == 0.0
    assert timing.parts[0].duration_ms == 0.0


def test_one_that_never_stood_still_has_no_pause() -> None:
    assert WindowClock().timing().pause_ms == 0.0
