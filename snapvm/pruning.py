"""Which snapshots to give up: a pure choice, by age, of those nobody asked to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from enum import StrEnum

from snapvm.model import DomainUuid, Record, RecordKind, SnapshotId, moment

_Key = tuple[DomainUuid, SnapshotId]


class Period(StrEnum):
    """A stretch of time of which one snapshot is kept, the newest in it."""

    HOUR = "hourly"
    DAY = "daily"
    WEEK = "weekly"
    MONTH = "monthly"
    YEAR = "yearly"


_FORMATS = {
    Period.HOUR: "%Y-%m-%d %H %z",
    Period.DAY: "%Y-%m-%d",
    Period.WEEK: "%G-%V",
    Period.MONTH: "%Y-%m",
    Period.YEAR: "%Y",
}
"""What two moments of one period have in common.  Weeks are those of ISO 8601."""
_LAST = "last"
_RULES = frozenset({_LAST, *Period})
"""The reasons by which a record takes one of a rule's places; what shields it takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How many to keep; a snapshot is kept when any rule wants it."""

    last: int = 0
    """The newest ones."""
    periods: Mapping[Period, int]
    """Of the newest periods that have any snapshot, this many."""
    with_named: bool = False
    """Those whose id somebody chose may go too."""
    with_undo: bool = False
    """What was current before a rollback may go too."""

    @property
    def keep_something(self) -> bool:
        """Whether any rule keeps any snapshot."""
        return self.last > 0 or any(count > 0 for count in self.periods.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a record, and what keeps it; nothing does when it goes."""

    record: Record
    kept_by: tuple[str, ...]
    is_useless: bool = False
    """It cannot be gone back to."""

    @property
    def has_a_place(self) -> bool:
        """Whether a rule would keep another one, were this one gone."""
        return not self.is_useless and not _RULES.isdisjoint(self.kept_by)


def judge(
    records: Iterable[Record],
    rules: Rules,
    zone: tzinfo | None = None,
    *,
    now: datetime,
    is_useless: Callable[[Record], bool] = lambda _: False,
) -> list[Verdict]:
    """Return what becomes of each record of one domain, the newest first.

    Records that may not go are kept and do not count.  Undo records are counted apart: after a few
    rollbacks they would take the places of all that was taken.  A record newer than ``now`` was
    made by a wrong clock, and is kept: it would take the place of all that will be made in its hour
    or year.  One that ``is_useless``, since a part of it is gone or lost, goes when its time has
    come, and takes no place from one that can be gone back to.  ``zone`` says when a day begins;
    None means the host's own.
    """
    newest_first = sorted(records, key=lambda record: record.place, reverse=True)
    reasons: dict[_Key, list[str]] = {_key(record): [] for record in newest_first}
    taken: list[Record] = []
    undos: list[Record] = []
    for record in newest_first:
        shield = _shield(record, rules, now, zone)
        if shield:
            reasons[_key(record)].append(shield)
        else:
            (undos if record.kind is RecordKind.UNDO else taken).append(record)
    useless = {_key(record) for record in newest_first if is_useless(record)}
    for its in (taken, undos):
        useful = [record for record in its if _key(record) not in useless]
        for counting in (its, useful):
            for key, reason in _wanted(counting, rules, zone):
                if reason not in reasons[key]:
                    reasons[key].append(reason)
    return [
        Verdict(
            record=record,
            kept_by=tuple(reasons[_key(record)]),
            is_useless=_key(record) in useless,
        )
        for record in newest_first
    ]


def _wanted(
    newest_first: Sequence[Record], rules: Rules, zone: tzinfo | None
) -> Iterator[tuple[_Key, str]]:
    """Yield which of the records a rule wants to keep, and the name of the rule."""
    for record in newest_first[: max(rules.last, 0)]:
        yield _key(record), _LAST
    for period, count in rules.periods.items():
        for record in _newest_of_each(newest_first, period, zone)[: max(count, 0)]:
            yield _key(record), period.value


def _key(record: Record) -> _Key:
    """Return what no other record has: a domain defined anew may have given an id again."""
    return record.domain_uuid, record.id


def _shield(record: Record, rules: Rules, now: datetime, zone: tzinfo | None) -> str:
    """Say what keeps a record whatever its age; empty when nothing does."""
    if record.kind is RecordKind.UNDO and not rules.with_undo:
        return "undo"
    if record.named and not rules.with_named:
        return "named"
    when = moment(record.created)
    if when is None or _here(record, zone) is None:
        return "of unknown age"
    return "in the future" if when > now else ""


def _here(record: Record, zone: tzinfo | None) -> datetime | None:
    """Return when a record was made on the clock of ``zone``; None where that has no such time.

    Python has no clock that is a day or more off UTC, as libc reads TZ=GMT+0530.  UTC is taken
    instead then, as libc does for a TZ that means nothing.
    """
    when = moment(record.created)
    try:
        return None if when is None else when.astimezone(zone)
    except (OverflowError, OSError):
        return None
    except ValueError:
        return when


def _newest_of_each(
    newest_first: Sequence[Record], period: Period, zone: tzinfo | None
) -> list[Record]:
    found: dict[str, Record] = {}
    for record in newest_first:
        when = _here(record, zone)
        if when is not None:
            found.setdefault(when.strftime(_FORMATS[period]), record)
    return list(found.values())
