"""The work of ``snapvm list`` and ``snapvm show``: read records, ask LVM, print."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any

from snapvm.catalog import Catalog
from snapvm.cli import columns, description, failures, output
from snapvm.cli.lookup import as_values, catalog_of, entries, find, is_mistaken
from snapvm.cli.session import Session
from snapvm.cli.volumestates import Volumes
from snapvm.cli.words import plain
from snapvm.errors import quoted, typed
from snapvm.lvm.health import Health, is_useless
from snapvm.model import Record
from snapvm.recordfolder import Damaged
from snapvm.settings import Settings

_ANEW = (
    "`snapvm catalog rebuild --dry-run` shows what can be rebuilt, and `snapvm check` what to do "
    "about the rest"
)

_Judged = tuple[Record, list[Health]]
_Judge = Callable[[Iterable[Record]], Iterator[_Judged]]


def print_list(session: Session, domain: str | None, *, as_json: bool) -> None:
    """Print the snapshots of one domain, or of all when it is None."""
    damaged: list[Damaged] = []
    catalog = catalog_of(session)
    volumes = Volumes()
    records = _records(catalog, domain, damaged)
    print_all = _print_json if as_json else _print_table
    with _no_cycles_sought():
        is_any = print_all(records, partial(_judged, catalog, volumes), damaged)
    if not is_any:
        output.err(_no_snapshots(domain, session.settings()))
    volumes.tell_of_silence()
    _tell_of(session, _in_order(damaged))


@contextmanager
def _no_cycles_sought() -> Iterator[None]:
    """Save a tenth of the time of ten thousand records, which hold no reference cycles."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _records(catalog: Catalog, domain: str | None, damaged: list[Damaged]) -> Iterator[Record]:
    """Yield the records asked for; put those that cannot be read into ``damaged``."""
    for _, entry in entries(catalog, domain):
        if isinstance(entry, Record):
            yield entry
        else:
            damaged.append(entry)


def _judged(catalog: Catalog, volumes: Volumes, records: Iterable[Record]) -> Iterator[_Judged]:
    """Yield records with the health of their disks, but none that has been deleted meanwhile.

    LVM is asked after they were read, and would call the volumes of a deleted one gone.
    """
    for record in records:
        healths = volumes.of(record)
        if not is_useless(healths) or catalog.has_record(record.domain_uuid, record.id, record.set):
            yield record, healths


def _tell_of(session: Session, damaged: list[Damaged]) -> None:
    """Say why records cannot be read, and then once for each kind of trouble what to do."""
    hints: dict[str, None] = {}
    for entry in damaged:
        how = "cannot be read" if entry.may_be_whole else "is damaged"
        output.warn(f"{entry.domain}@{entry.id} {how}: {entry.why}")
        hints[entry.trouble().hint() if entry.may_be_whole else _ANEW] = None
    there = failures.there_too(" ".join(hints), session.unusual_state_dir)
    for hint in filter(None, (*hints, there)):
        output.err(f"hint: {plain(hint)}")


def _in_order(damaged: list[Damaged]) -> list[Damaged]:
    return sorted(damaged, key=lambda entry: (entry.domain, entry.id))


def _print_json(records: Iterator[Record], judged: _Judge, damaged: list[Damaged]) -> bool:
    """Print a line of JSON for each record, and tell whether there is any."""
    by_age = sorted(records, key=lambda record: (record.domain, record.place), reverse=True)
    is_any = bool(by_age or damaged)
    # Popped, so that each of ten thousand is freed once it has become text.
    rows = (_with_health(*each) for each in judged(by_age.pop() for _ in range(len(by_age))))
    output.out_json_rows(chain(rows, map(_as_damaged, _in_order(damaged))))
    return is_any


def _as_damaged(entry: Damaged) -> dict[str, Any]:
    """Return what is known of a damaged record, so that no program takes the snapshot for gone."""
    return {
        "ref": f"{entry.domain}@{entry.id}",
        "id": entry.id,
        "kind": columns.DAMAGED,
        "domain": {"name": entry.domain, "uuid": entry.domain_uuid},
        "problem": entry.why,
    }


def _print_table(records: Iterator[Record], judged: _Judge, damaged: list[Damaged]) -> bool:
    """Print a row for each record, and tell whether there is any."""
    # Each record becomes its row at once: for ten thousand that needs a third of the memory.
    rows = columns.sorted_rows(judged(records))
    rows += columns.damaged_rows(_in_order(damaged))
    if not rows:
        return False
    if sys.stdout.isatty() and len(rows) <= columns.TABLE_LIMIT:
        # heavy: rich takes 60 ms to import and is for people only
        from snapvm.cli import render

        output.out(render.table(rows))
    else:
        output.out(columns.aligned(rows))
    return True


def _no_snapshots(domain: str | None, settings: Settings) -> str:
    """Say that there are no snapshots, and what to type."""
    whose = "" if domain is None else f" of {quoted(domain)}"
    shows = domain is not None and "@" in domain  # it may be a snapshot, or a domain's name
    verb, deed = ("show", "shows") if shows else ("take", "makes")
    what = f"`{typed(verb, plain(domain or 'DOM'))}` {deed} one"
    folder = plain(str(settings.state_dir))
    where = f" in {folder}, which does not exist" if is_mistaken(settings) else ""
    return f"no snapshots{whose}{where} ({what})"


def _with_health(record: Record, healths: list[Health]) -> dict[str, Any]:
    """Return a record as JSON values, with the present health of its disks."""
    # asdict would take as long as all the rest, for ten thousand records.
    values = [
        {
            "target": each.target,
            "state": each.state.value,
            "fill_percent": each.fill_percent,
            "volume": each.volume or None,
        }
        for each in healths
    ]
    return {**as_values(record), "health": values}


def print_record(session: Session, reference: str, *, as_json: bool) -> None:
    """Print everything about one snapshot."""
    catalog = catalog_of(session)
    record = find(catalog, reference)
    volumes = Volumes()
    healths = volumes.of(record)
    if is_useless(healths):
        record = catalog.again(record)  # it may have been deleted when LVM was asked
    if as_json:
        output.out_json(_with_health(record, healths))
        volumes.tell_of_silence()
        return
    now, is_unicode = datetime.now(UTC), output.is_unicode(sys.stdout)
    lines = description.lines(record, healths, catalog, now, is_unicode=is_unicode)
    output.out("\n".join(lines) + "\n")
    volumes.tell_of_silence()
