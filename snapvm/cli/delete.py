"""``snapvm delete``: remove snapshots for good."""

from __future__ import annotations

from snapvm import naming
from snapvm.cli import output
from snapvm.cli.arguments import AsJson, ForgetMissing, References, Wait, Yes
from snapvm.cli.confirm import confirm
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import counted, local_time, plain, size
from snapvm.errors import some
from snapvm.model import Record

MANUAL = Manual(
    prerequisites=(
        "Every snapshot named exists, nobody is using its volumes, and LVM is not moving or "
        "merging any of them. With `--yes` each is named by its whole id, or as `latest`."
    ),
    success=(
        "The records, their memory images and their volumes are gone. The domain and its other "
        "snapshots are not touched."
    ),
    failure=(
        "All snapshots are checked before the first is deleted: if one of them is refused, none is "
        "touched. If one fails later, those before it are gone, those after it are not touched, "
        "the message says which, and the exit status is 6 or more. After an interruption (Ctrl-C) "
        "the delete in progress is still finished, and the message says which snapshots are gone. "
        "A snapshot whose record cannot be read is refused, because only the record says what "
        "belongs to it: the hint says how to rebuild the record, and how to remove the snapshot if "
        "that fails."
    ),
    example="snapvm delete demo@before-upgrade demo@undo-20261122T201801Z",
)


def delete(
    references: References,
    forget_missing: ForgetMissing = False,
    yes: Yes = False,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Delete snapshots: their volumes, memory images and records."""
    for reference in references:
        naming.split_reference(reference)

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import consistency
        from snapvm.cli import lookup, wiring
        from snapvm.cli.progress import shown

        session.override(lock_wait_seconds=wait)
        catalog = lookup.catalog_of(session)
        found = [lookup.find(catalog, reference, whole=yes) for reference in references]
        records = list({(record.domain_uuid, record.id): record for record in found}.values())
        if not yes:
            confirm(
                explanation(records), f"deleting {some(tuple(record.ref for record in records))}"
            )
        words = zip(found, references, strict=True)
        # Who was asked has read which ones they are.
        by_word = {
            (record.domain_uuid, record.id): word
            for record, word in words
            if yes and not word.endswith(f"@{record.id}")
        }

        def require_meant(record: Record) -> None:
            if word := by_word.get((record.domain_uuid, record.id)):
                lookup.require_meant(catalog, word, record)

        host = wiring.open_host(session.settings(), session)
        with shown(quiet=session.verbose) as progress:
            consistency.delete(
                host,
                records,
                progress,
                forget_missing=forget_missing,
                require_meant=require_meant,
            )
        if as_json:
            output.out_json({"deleted": [record.ref for record in records]})
        else:
            output.say(f"deleted {', '.join(record.ref for record in records)}")

    return Job(json=as_json, run=run)


def explanation(records: list[Record]) -> list[str]:
    """Return what is going to be lost, in plain words, a line each."""
    lines = [f"{counted(len(records), 'snapshot').capitalize()} will be gone for good:"]
    for record in records:
        memory = "" if record.memory is None else f", memory {size(record.written_bytes)}"
        disks = counted(len(record.disks), "disk")
        note = f" ({plain(record.note)})" if record.note else ""
        when = local_time(record.created)
        lines.append(f"- {record.ref} of {when}: {disks}{memory}{note}")
    return lines
