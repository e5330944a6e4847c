"""``snapvm list`` and ``snapvm show``: what there is; they need the catalog alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime

from snapvm import naming
from snapvm.catalog import Catalog, Damaged
from snapvm.cli import columns, description, output
from snapvm.cli.arguments import AsJson, OptionalDomain, Reference
from snapvm.cli.lookup import catalog_of, find
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import plain
from snapvm.model import Record

LIST_MANUAL = Manual(
    prerequisites="None. Neither the hypervisor nor LVM is asked.",
    success=(
        "The snapshots are printed, the oldest first: a table on a terminal, aligned columns "
        "elsewhere, and with `--json` an array of records as `snapshot.json` holds them, each with "
        "its `ref`. Times are of this host's clock. KIND is `full` (memory and disks), `disks`, or "
        "`undo` (the disks that were current before a rollback). A record that cannot be read is "
        "shown last as `damaged`, with the reason on standard error; with `--json` only there."
    ),
    failure="Nothing is changed.",
    example="snapvm list demo --json | jq -r '.[].ref'",
)
SHOW_MANUAL = Manual(
    prerequisites="None. Neither the hypervisor nor LVM is asked.",
    success=(
        "All that is recorded about the snapshot is printed, and the time the domain stood still "
        "is drawn with what filled it."
    ),
    failure="Nothing is changed.",
    example="snapvm show demo@latest",
)


def list_snapshots(domain: OptionalDomain = None, as_json: AsJson = False) -> Job:
    """List snapshots, of one domain or of all."""

    def run(session: Session) -> None:
        catalog = catalog_of(session)
        damaged: list[Damaged] = []
        records = _records(catalog, domain, damaged)
        if as_json:
            by_age = sorted(records, key=lambda record: (record.domain, record.created, record.id))
            output.out_json_rows(output.record_values(record) for record in by_age)
        else:
            _print_table(records, damaged, domain)
        for entry in sorted(damaged, key=lambda entry: (entry.domain, entry.id)):
            output.warn(f"{entry.domain}@{entry.id} is damaged: {entry.why}")

    return Job(json=as_json, run=run)


def _records(catalog: Catalog, domain: str | None, damaged: list[Damaged]) -> Iterator[Record]:
    """Yield the records asked for; put those that cannot be read into ``damaged``."""
    for uuid, name in catalog.domains():
        if domain is None or name == domain:
            for entry in catalog.entries(uuid):
                if isinstance(entry, Damaged):
                    damaged.append(entry)
                else:
                    yield entry


def _print_table(records: Iterator[Record], damaged: list[Damaged], domain: str | None) -> None:
    # Each record becomes its row at once: ten thousand of them need a third of the memory so.
    rows = columns.sorted_rows(records)
    rows += columns.damaged_rows(damaged)
    if not rows:
        whose = "no snapshots" if domain is None else f"no snapshots of {plain(domain)}"
        output.err(f"{whose} (`snapvm take DOM` makes one)")
    elif sys.stdout.isatty() and len(rows) <= columns.TABLE_LIMIT:
        # heavy: rich takes 60 ms to import and is for people only
        from snapvm.cli import render

        output.out(render.table(rows))
    else:
        output.out(columns.aligned(rows))


def show(reference: Reference, as_json: AsJson = False) -> Job:
    """Show all about a snapshot, and what filled its pause."""
    naming.split_reference(reference)

    def run(session: Session) -> None:
        catalog = catalog_of(session)
        record = find(catalog, reference)
        if as_json:
            output.out_json(output.record_values(record))
            return
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").casefold()
        lines = description.lines(
            record, catalog, datetime.now(UTC), is_unicode=encoding.startswith("utf")
        )
        output.out("\n".join(lines) + "\n")

    return Job(json=as_json, run=run)
