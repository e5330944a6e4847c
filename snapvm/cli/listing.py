"""The work of ``snapvm list`` and ``snapvm show``."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapvm.catalog import Catalog
from snapvm.cli import columns, description, output
from snapvm.cli.lookup import as_values, catalog_of, entries, find
from snapvm.cli.session import Session
from snapvm.cli.words import plain
from snapvm.errors import quoted, typed
from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.lvm import health
from snapvm.lvm.health import Health
from snapvm.lvm.report import Report
from snapvm.model import Record
from snapvm.recordfolder import Damaged
from snapvm.refusals import HostLacks
from snapvm.settings import Settings

if TYPE_CHECKING:
    from snapvm.lvm.volumes import Lvm


def print_list(session: Session, domain: str | None, *, as_json: bool) -> None:
    """Print the snapshots of one domain, or of all when it is None."""
    # A record holds no cycles; looking for them in ten thousand costs a tenth of the time.
    gc.disable()
    damaged: list[Damaged] = []
    catalog = catalog_of(session)
    volumes = _Volumes()
    records = _records(catalog, domain, damaged)
    print_all = _print_json if as_json else _print_table
    if not print_all(records, volumes, damaged):
        output.err(_nothing(domain, session.settings().state_dir))
    volumes.tell_of_silence()
    for entry in _in_order(damaged):
        output.warn(f"{entry.domain}@{entry.id} is damaged: {entry.why}")
    if damaged:
        output.err(
            "hint: `snapvm catalog rebuild --dry-run` tells what can be made anew, and "
            "`snapvm check` what to do with the rest"
        )


def _records(catalog: Catalog, domain: str | None, damaged: list[Damaged]) -> Iterator[Record]:
    """Yield the records asked for; put those that cannot be read into ``damaged``."""
    for _, entry in entries(catalog, domain):
        if isinstance(entry, Record):
            yield entry
        else:
            damaged.append(entry)


def _in_order(damaged: list[Damaged]) -> list[Damaged]:
    return sorted(damaged, key=lambda entry: (entry.domain, entry.id))


def _print_json(records: Iterator[Record], volumes: _Volumes, damaged: list[Damaged]) -> bool:
    """Print a row for each, and tell whether there is any."""
    by_age = sorted(records, key=lambda record: (record.domain, record.place))
    rows = (_with_health(record, volumes) for record in by_age)
    output.out_json_rows(chain(rows, map(_as_damaged, _in_order(damaged))))
    return bool(by_age or damaged)


def _as_damaged(entry: Damaged) -> dict[str, Any]:
    """Return what is known of a record that cannot be read: a program must not take it for gone."""
    return {
        "ref": f"{entry.domain}@{entry.id}",
        "id": entry.id,
        "kind": columns.DAMAGED,
        "domain": {"name": entry.domain, "uuid": entry.path.parent.parent.name},
        "problem": entry.why,
    }


def _print_table(records: Iterator[Record], volumes: _Volumes, damaged: list[Damaged]) -> bool:
    """Print a row for each, and tell whether there is any."""
    # Each record becomes its row at once: ten thousand of them need a third of the memory so.
    rows = columns.sorted_rows((record, volumes.of(record)) for record in records)
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


def _nothing(domain: str | None, state_dir: Path) -> str:
    """Say that there is none, and what to type; a domain's name may hold an @."""
    whose = "" if domain is None else f" of {quoted(domain)}"
    shows = domain is not None and "@" in domain
    verb, deed = ("show", "shows") if shows else ("take", "makes")
    what = f"`{typed(verb, plain(domain or 'DOM'))}` {deed} one"
    # The usual place is made by the first take; another that is not there may be a wrong one.
    is_strange = state_dir != Settings().state_dir and not state_dir.exists()
    where = f" in {plain(str(state_dir))}, which does not exist" if is_strange else ""
    return f"no snapshots{whose}{where} ({what})"


class _Volumes:
    """How volumes are now.  LVM is asked once, and once more where it shows nothing of a group."""

    def __init__(self) -> None:
        self._lvm: Lvm | None = None
        self._report: Report | None = None
        self._silence = ""
        """Why LVM does not answer."""

    def tell_of_silence(self) -> None:
        """Say why nothing is known of any volume, if that is so."""
        if self._silence:
            output.note(f"how the volumes are is not known: {self._silence}")

    def of(self, record: Record) -> list[Health]:
        """Judge the snapshot of each disk; nothing is known where LVM does not answer."""
        # LVM is asked for the first record: a catalog without any is listed without it.
        if self._lvm is None:
            self._lvm = _lvm()
            self._report = self._answer(self._lvm.report)
        if self._report is not None:
            self._report = self._explained(self._lvm, self._report, record)
        return [health.of_disk(disk, self._report) for disk in record.disks]

    def _explained(self, lvm: Lvm, report: Report, record: Record) -> Report:
        snapshots = [disk.snapshot for disk in record.disks]
        known = self._answer(lambda: lvm.explained(report, snapshots))
        return known or Report(report.volumes, groups=())

    def _answer(self, ask: Callable[[], Report]) -> Report | None:
        """Ask LVM; None where there is none, or it does not answer."""
        try:
            return ask()
        except (HostLacks, CommandFailed, CommandTimedOut) as error:
            self._silence = str(error)
            return None


def _lvm() -> Lvm:
    # heavy: sh and its threads; a record alone needs none
    from snapvm.lvm.volumes import Lvm
    from snapvm.process import ShRunner

    return Lvm(ShRunner())


def _with_health(record: Record, volumes: _Volumes) -> dict[str, Any]:
    """Return a record as JSON values, with how its volumes are now."""
    # Not asdict, which would take as long as all the rest for ten thousand records.
    told = [
        {"target": each.target, "state": each.state.value, "fill_percent": each.fill_percent}
        for each in volumes.of(record)
    ]
    return {**as_values(record), "health": told}


def print_record(session: Session, reference: str, *, as_json: bool) -> None:
    """Print all about one snapshot."""
    catalog = catalog_of(session)
    record = find(catalog, reference)
    volumes = _Volumes()
    if as_json:
        output.out_json(_with_health(record, volumes))
        volumes.tell_of_silence()
        return
    healths = volumes.of(record)
    now, is_unicode = datetime.now(UTC), output.is_unicode(sys.stdout)
    lines = description.lines(record, healths, catalog, now, is_unicode=is_unicode)
    output.out("\n".join(lines) + "\n")
    volumes.tell_of_silence()
