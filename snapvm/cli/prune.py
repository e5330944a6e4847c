"""``snapvm prune``: delete snapshots by age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated

import typer

from snapvm.cli import output
from snapvm.cli.arguments import AsJson, OptionalDomain, Wait, Yes
from snapvm.cli.confirm import confirm
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import counted, local_time, plain
from snapvm.failures import DeleteInterrupted, DeleteStopped
from snapvm.interrupt import nothing_is_left
from snapvm.model import DomainUuid, Record
from snapvm.pruning import Period, Rules, Verdict, judge
from snapvm.refusals import KeptIsGone

if TYPE_CHECKING:
    from snapvm.catalog import Catalog

MANUAL = Manual(
    prerequisites="DOM or `--all`, and at least one `--keep-...` that keeps something.",
    success=(
        "Every snapshot that no rule keeps is deleted, as by `delete`. `--keep-last` keeps the "
        "newest ones; each other rule keeps the newest snapshot of each of the last N hours, days, "
        "ISO weeks, months or years that have any, in this host's time zone. A snapshot is kept if "
        "any rule keeps it. Snapshots with a `--name` and undo snapshots are left alone and are "
        "not counted; nor are those whose record cannot be read, or whose time is in the future "
        "because of a wrong clock. A snapshot that cannot be rolled back to, because a volume of "
        "it or its image is gone or lost, is counted like any other but takes the place of none "
        "that can. With `--include-undo` the rules also apply to undo snapshots, which are counted "
        "separately. If several domains had the same name one after another, those that have the "
        "same name now, or no longer exist, are judged together. A snapshot that somebody else "
        "deletes meanwhile is no failure and is not mentioned, unless it was to be kept: then the "
        "remaining deletions of its domain are refused, as one of those snapshots may have to be "
        "kept instead. With DOM only the snapshots that `list DOM` shows are considered."
    ),
    failure=(
        "As for `delete`, but for each domain separately: what stops the work on one domain, such "
        "as another snapvm working on it, does not stop it on the others. Snapshots that are in "
        "use, for instance by a backup, those whose volumes LVM is moving or merging, and those "
        "with volumes in a volume group that is missing (see `delete`), are skipped, and the "
        "others of their domain are deleted. While LVM does not answer, nothing is chosen and "
        "nothing deleted. The exit status is that of the worst failure, and 6 "
        "or more if any snapshot is gone; the message says which were not touched."
    ),
    example="snapvm prune --all --keep-last 3 --keep-daily 7 --keep-weekly 4 --yes",
)


def _keep(unit: str, of_each: str) -> typer.models.OptionInfo:
    help_ = f"Keep the newest of each of the last N {of_each}."
    option: typer.models.OptionInfo = typer.Option(
        f"--keep-{unit}", metavar="N", min=0, help=help_, show_default=False
    )
    return option


def prune(
    domain: OptionalDomain = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="The snapshots of every domain, in place of DOM.")
    ] = False,
    last: Annotated[
        int,
        typer.Option(
            "--keep-last", metavar="N", min=0, help="Keep the newest N.", show_default=False
        ),
    ] = 0,
    hourly: Annotated[int, _keep("hourly", "hours")] = 0,
    daily: Annotated[int, _keep("daily", "days")] = 0,
    weekly: Annotated[int, _keep("weekly", "weeks")] = 0,
    monthly: Annotated[int, _keep("monthly", "months")] = 0,
    yearly: Annotated[int, _keep("yearly", "years")] = 0,
    named: Annotated[
        bool, typer.Option("--include-named", help="Also delete snapshots with a --name.")
    ] = False,
    undo: Annotated[
        bool,
        typer.Option("--include-undo", help="Also delete undo snapshots, which rollbacks leave."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show what would be deleted.")
    ] = False,
    yes: Yes = False,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Delete the snapshots that no rule keeps."""
    counts = (hourly, daily, weekly, monthly, yearly)
    periods = dict(zip(Period, counts, strict=True))
    rules = Rules(last=last, periods=periods, with_named=named, with_undo=undo)
    if (domain is None) is not everyone:
        raise typer.BadParameter("give either a domain or --all", param_hint="DOM")
    if not rules.keep_something:
        problem = "say what to keep: one of --keep-last, --keep-daily and so on"
        raise typer.BadParameter(problem, param_hint="--keep-...")

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import consistency
        from snapvm.cli import lookup, wiring
        from snapvm.cli.progress import shown

        session.override(lock_wait_seconds=wait)
        opened = cache(lambda: wiring.open_host(session.settings(), session))

        @cache
        def name_of(uuid: DomainUuid) -> str:
            return opened().hypervisor.name_of(uuid)

        catalog = lookup.catalog_of(session)
        judged = _verdicts(catalog, domain, rules, name_of, dry_run=dry_run)
        lookup.warn_if_mistaken(session.settings())
        verdicts = [verdict for its in judged for verdict in its]
        doomed = [_doomed(its) for its in judged]
        gone = tuple(record for its in doomed for record in its)
        if gone and not dry_run:
            if not yes:
                confirm(_lines(verdicts), f"deleting {counted(len(gone), 'snapshot')}")
            host = opened()
            is_named = yes and not as_json  # who was asked has read which ones they are
            with _naming_all(is_named), shown(quiet=session.verbose) as progress:
                require_meant = partial(_require_kept, catalog, judged)
                gone = consistency.prune(host, doomed, progress, require_meant=require_meant)
        if as_json:
            output.out_json(_as_values(verdicts, gone, dry_run=dry_run))
        elif dry_run:
            _tell("would delete", verdicts, gone, _lines(verdicts))
        else:
            refs = _refs_of(gone, verdicts) if yes else []
            _tell("deleted", verdicts, gone, [f"deleted {ref}" for ref in refs])

    return Job(json=as_json, run=run)


@contextmanager
def _naming_all(is_wanted: bool) -> Iterator[None]:
    """Name what is gone when the block fails, too: the failure itself names no more than a few."""
    try:
        yield
    except (DeleteStopped, DeleteInterrupted) as failure:
        nothing_is_left()
        output.say_what_is_done(f"deleted {ref}" for ref in failure.deleted if is_wanted)
        raise


def _tell(
    deed: str, verdicts: list[Verdict], gone: Collection[Record], lines: Iterable[str]
) -> None:
    for line in lines:
        output.say(line)
    kept = sum(bool(verdict.kept_by) for verdict in verdicts)
    output.say(f"{deed} {counted(len(gone), 'snapshot')}, kept {kept}")


def _require_kept(catalog: Catalog, judged: list[list[Verdict]], doomed: Record) -> None:
    """Raise ``KeptIsGone`` when a record may have to be kept after all, in place of one now gone.

    Another snapvm, which was waited for or works beside, may have deleted what was to be kept.
    """
    its = next(its for its in judged if any(each.record is doomed for each in its))
    kept = [verdict.record for verdict in its if verdict.has_a_place]
    there = {(uuid, id_) for uuid in {r.domain_uuid for r in kept} for id_ in catalog.ids(uuid)}
    for record in kept:
        if (record.domain_uuid, record.id) not in there:
            raise KeptIsGone(snapshot=doomed.ref, kept=record.ref)


def _doomed(verdicts: list[Verdict]) -> list[Record]:
    """Return what is to go, the oldest first, so that what ends it halfway leaves the newer."""
    return [verdict.record for verdict in reversed(verdicts) if not verdict.kept_by]


def _verdicts(
    catalog: Catalog,
    domain: str | None,
    rules: Rules,
    name_of: Callable[[DomainUuid], str],
    *,
    dry_run: bool,
) -> list[list[Verdict]]:
    """Judge the records that `list` shows, those of each domain by themselves.

    Domains of the same name count as one (``_apart``).  Raises ``UnknownSnapshot`` for a domain
    that the catalog does not know.  Where LVM does not answer nobody knows which are lost, and one
    of those must not be kept in the place of a whole one: that is raised, except in a ``dry_run``.
    """
    # heavy: the catalog and its parsers; `snapvm --help` does without
    from snapvm.cli import lookup
    from snapvm.cli.volumestates import Volumes
    from snapvm.errors import UnknownSnapshot

    records: dict[str, list[Record]] = {}
    for name, entry in lookup.entries(catalog, domain):
        if isinstance(entry, Record):
            records.setdefault(name, []).append(entry)
    known = {known for each in catalog.domains() for known in each}
    if domain is not None and not records and domain not in known:
        raise UnknownSnapshot(domain=domain, id="")
    now = datetime.now(UTC)
    volumes = Volumes()

    def is_useless(record: Record) -> bool:
        return volumes.are_useless(record) or not _has_memory(catalog, record)

    groups = (each for name, its in sorted(records.items()) for each in _apart(name, its, name_of))
    judged = [_judged(its, rules, now, is_useless) for its in groups]
    if dry_run:
        volumes.tell_of_silence()
    else:
        volumes.require_answer()
    return judged


def _apart(
    name: str, records: list[Record], name_of: Callable[[DomainUuid], str]
) -> Iterable[list[Record]]:
    """Group records that the catalog has under one name by the present names of their domains.

    A domain that was renamed has its former name there until its next `take`, and another that got
    that name must not cost it a record.  A domain that is gone was this one before it was defined
    anew.
    """
    if len({record.domain_uuid for record in records}) == 1:
        return [records]
    apart: dict[str, list[Record]] = {}
    for record in records:
        apart.setdefault(name_of(record.domain_uuid) or name, []).append(record)
    return apart.values()


def _judged(
    records: list[Record], rules: Rules, now: datetime, is_useless: Callable[[Record], bool]
) -> list[Verdict]:
    """Judge the records of a domain; LVM is asked only where one is to go."""
    verdicts = judge(records, rules, now=now)
    if not _doomed(verdicts):
        return verdicts
    return judge(records, rules, now=now, is_useless=is_useless)


def _has_memory(catalog: Catalog, record: Record) -> bool:
    """Tell whether the image of a record, if it has one, is there and as long as it was.

    Raises ``StorageFailed`` and ``NotAllowed`` where that cannot be told.
    """
    if record.memory is None:
        return True
    # heavy: as above
    from snapvm import durable

    path = catalog.path(record, record.memory.file)
    with durable.failing_untouched(path):  # what a server does not show now is not gone
        return durable.is_there(path) and path.stat().st_size == record.memory.size_bytes


def _refs(verdicts: list[Verdict]) -> list[str]:
    """Return a reference to each snapshot, with its domain's uuid where a name fits several."""
    refs = Counter(verdict.record.ref for verdict in verdicts)
    records = (verdict.record for verdict in verdicts)
    return [
        record.ref if refs[record.ref] == 1 else f"{record.domain_uuid}@{record.id}"
        for record in records
    ]


def _refs_of(gone: Collection[Record], verdicts: list[Verdict]) -> list[str]:
    """Return the references, among those of ``_refs``, of the snapshots that are gone."""
    ids = {(record.domain_uuid, record.id) for record in gone}
    named = zip(_refs(verdicts), verdicts, strict=True)
    return [ref for ref, each in named if (each.record.domain_uuid, each.record.id) in ids]


def _lines(verdicts: list[Verdict]) -> list[str]:
    """Return a line for each snapshot that says whether it is kept, and why."""
    lines = []
    for ref, verdict in zip(_refs(verdicts), verdicts, strict=True):
        fate = f"keep   ({', '.join(verdict.kept_by)})" if verdict.kept_by else "delete"
        fate += "; it cannot be rolled back to" if verdict.is_useless else ""
        lines.append(f"{plain(ref)} of {local_time(verdict.record.created)}: {fate}")
    return lines


def _as_values(
    verdicts: list[Verdict], gone: Collection[Record], *, dry_run: bool
) -> dict[str, object]:
    named = zip(_refs(verdicts), verdicts, strict=True)
    return {
        "dry_run": dry_run,
        "deleted": _refs_of(gone, verdicts),
        "kept": {ref: list(verdict.kept_by) for ref, verdict in named if verdict.kept_by},
    }
