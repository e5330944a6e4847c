"""What `prune` keeps: by example, and by what must hold for any catalog and any rules."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm.model import DomainUuid, Record, RecordKind
from snapvm.pruning import Period, Rules, judge
from tests.fakes.records import make_record

NOON = datetime(2026, 3, 31, 12, tzinfo=UTC)


def rules(last: int = 0, **periods: int) -> Rules:
    return Rules(last=last, periods={Period(name): count for name, count in periods.items()})


def record(hours_ago: float, **changes: object) -> Record:
    created = (NOON - timedelta(hours=hours_ago)).isoformat()
    return make_record(f"h{hours_ago}", **{"created": created, **changes})


def kept(records: list[Record], chosen: Rules) -> list[str]:
    return [v.record.id for v in judge(records, chosen, UTC, now=NOON) if v.kept_by]


def test_the_newest_are_kept() -> None:
    assert kept([record(3), record(1), record(2)], rules(last=2)) == ["h1", "h2"]


def test_of_each_day_the_newest_is_kept() -> None:
    records = [record(hours) for hours in (1, 5, 13, 20, 37, 200)]
    assert kept(records, rules(daily=2)) == ["h1", "h13"]
    assert kept(records, rules(daily=9)) == ["h1", "h13", "h37", "h200"]


def test_days_without_a_snapshot_do_not_count() -> None:
    assert kept([record(1), record(24 * 40)], rules(daily=2)) == ["h1", "h960"]


def test_what_was_current_before_rollbacks_takes_no_snapshots_place() -> None:
    """With --include-undo the last snapshot went, and the undo of the latest rollback stayed."""
    undos = [record(hours, kind=RecordKind.UNDO) for hours in (1, 2, 3)]
    chosen = replace(rules(last=1, daily=2), with_undo=True)
    assert kept([*undos, record(4), record(5)], chosen) == ["h1", "h4"]


def test_a_day_begins_where_the_host_is() -> None:
    records = [record(1), record(13)]  # 11:00 and the evening before, 23:00, of UTC
    assert len([v for v in judge(records, rules(daily=2), UTC, now=NOON) if v.kept_by]) == 2
    tokyo = judge(records, rules(daily=2), ZoneInfo("Asia/Tokyo"), now=NOON)
    assert [v.record.id for v in tokyo if v.kept_by] == ["h1"]


def test_every_rule_that_wants_a_snapshot_is_named() -> None:
    (verdict,) = judge([record(1)], rules(last=1, weekly=1, yearly=1), UTC, now=NOON)
    assert verdict.kept_by == ("last", "weekly", "yearly")


def test_the_last_iso_week_of_a_year_is_one_week() -> None:
    monday, sunday = datetime(2020, 12, 28, tzinfo=UTC), datetime(2021, 1, 3, tzinfo=UTC)
    records = [make_record(str(day.day), created=day.isoformat()) for day in (monday, sunday)]
    assert kept(records, rules(weekly=5)) == ["3"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"named": True}, "named"),
        ({"kind": RecordKind.UNDO, "memory": None}, "undo"),
        ({"created": "long ago"}, "of unknown age"),
        ({"created": (NOON + timedelta(days=3650)).isoformat()}, "in the future"),
    ],
)
def test_what_nobody_may_take_away_does_not_count(changes: dict[str, object], reason: str) -> None:
    shielded = make_record("shielded", **{"created": NOON.isoformat(), **changes})
    verdicts = judge([shielded, record(1)], rules(last=1), UTC, now=NOON)
    assert {v.record.id: v.kept_by for v in verdicts} == {"shielded": (reason,), "h1": ("last",)}


def test_a_time_that_no_clock_shows_here_keeps_none_from_being_judged() -> None:
    """West of Greenwich the year 1 began in no year: `prune --all` ended as a bug of snapvm's."""
    first = make_record("first", created="0001-01-01T00:00:00+00:00")
    verdicts = judge([first, record(1)], rules(daily=2), ZoneInfo("America/Lima"), now=NOON)
    assert {v.record.id: v.kept_by for v in verdicts} == {
        "first": ("of unknown age",),
        "h1": ("daily",),
    }


def test_they_go_when_that_is_asked_for() -> None:
    named = record(2, named=True)
    undos = [record(hours, kind=RecordKind.UNDO, memory=None) for hours in (3, 4)]
    chosen = Rules(last=1, periods={}, with_named=True, with_undo=True)
    assert kept([named, *undos, record(1)], chosen) == ["h1", "h3"]


@pytest.mark.parametrize("created", ["long ago", (NOON + timedelta(days=1)).isoformat()])
def test_an_undo_of_a_wrong_clock_does_not_stand_for_all_others(created: str) -> None:
    """It was the newest: `--keep-last 1 --include-undo` kept it, and deleted all there was."""
    undo = record(0, kind=RecordKind.UNDO, memory=None, created=created)
    chosen = Rules(last=1, periods={}, with_undo=True)
    assert sorted(kept([undo, record(1), record(2)], chosen)) == ["h0", "h1"]


def test_what_cannot_be_gone_back_to_goes_when_its_time_has_come() -> None:
    """But it stands in the place of none that can, under no rule."""
    records = [record(hours) for hours in (1, 2, 26, 27, 50, 51)]
    chosen = rules(last=1, daily=2)
    verdicts = judge(
        records, chosen, UTC, now=NOON, is_useless=lambda r: r.id in ("h1", "h26", "h51")
    )
    assert {v.record.id: v.kept_by for v in verdicts if v.kept_by} == {
        "h1": ("last", "daily"),
        "h2": ("last", "daily"),
        "h26": ("daily",),
        "h27": ("daily",),
    }
    assert [v.record.id for v in verdicts if v.is_useless] == ["h1", "h26", "h51"]
    assert [v.record.id for v in verdicts if v.has_a_place] == ["h2", "h27"]


CATALOGS = st.lists(
    st.builds(
        lambda minutes, named: record(minutes / 60, named=named),
        st.integers(0, 60 * 24 * 900),
        st.booleans(),
    ),
    max_size=40,
    unique_by=lambda made: made.id,
)
RULES = st.builds(
    lambda last, counts: Rules(last=last, periods=dict(zip(Period, counts, strict=True))),
    st.integers(0, 5),
    st.lists(st.integers(0, 4), min_size=5, max_size=5),
)


@given(CATALOGS, RULES)
def test_pruning_again_deletes_nothing_more(records: list[Record], chosen: Rules) -> None:
    survivors = [v.record for v in judge(records, chosen, UTC, now=NOON) if v.kept_by]
    assert all(v.kept_by for v in judge(survivors, chosen, UTC, now=NOON))


@given(CATALOGS, RULES)
def test_no_rule_keeps_more_than_it_says(records: list[Record], chosen: Rules) -> None:
    verdicts = judge(records, chosen, UTC, now=NOON)
    assert {v.record.id for v in verdicts} == {made.id for made in records}
    for period, count in (("last", chosen.last), *chosen.periods.items()):
        assert sum(str(period) in v.kept_by for v in verdicts) <= count
    unnamed = [v for v in verdicts if not v.record.named]
    if unnamed and chosen.keep_something:
        assert unnamed[0].kept_by, "the newest one survives every rule"


def test_a_zone_that_cannot_be_used_is_that_of_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes no zone a day from UTC, as which libc reads this; each `prune` was a bug."""
    monkeypatch.setenv("TZ", "GMT+0530")
    time.tzset()
    try:
        judged = judge([record(1), record(5), record(13)], rules(daily=2), now=NOON)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [v.record.id for v in judged if v.kept_by] == ["h1", "h13"]


def test_two_domains_may_have_given_one_id() -> None:
    """Xen's have another uuid with every `xl create`, and the name stays."""
    anew = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")
    older = make_record("a", created=(NOON - timedelta(days=9)).isoformat())
    newer = make_record("a", created=NOON.isoformat(), domain_uuid=anew)
    verdicts = judge([older, newer], rules(last=1), UTC, now=NOON)
    assert [(v.record, v.kept_by) for v in verdicts] == [(newer, ("last",)), (older, ())]
