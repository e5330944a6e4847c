"""``snapvm check``: find what snapshots lack, and what belongs to no snapshot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapvm.cli import output
from snapvm.cli.arguments import AsJson, OptionalDomain, Yes
from snapvm.cli.confirm import confirm
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import plain
from snapvm.interrupt import nothing_is_left, what_is_done_stays
from snapvm.refusals import NotConfirmed

if TYPE_CHECKING:
    from snapvm.checking import Finding
    from snapvm.errors import SnapvmError
    from snapvm.lvm.logicalvolume import LogicalVolume

MANUAL = Manual(
    prerequisites="None; no domain and no snapshot is changed, except by `--fix`.",
    success=(
        "Every snapshot has its memory image and its volumes as they were recorded, and no work "
        "was left unfinished. If no domain was named, it also means that every volume of snapvm's "
        "belongs to a snapshot, that no pool that holds snapshots is about to run full, and that "
        "no volume group with snapshots is about to run out of room for metadata. With `--deep` "
        "every memory image was read and compared with its checksum. With `--fix` volumes that "
        "belong to no snapshot were removed, after asking. Such a volume is kept if the catalog "
        "does not know its domain, if another host made it, if it is in use, has been made "
        "writable or has been built upon, or if LVM is moving or merging it."
    ),
    failure="Each finding is printed on a line of its own, with what to do about it.",
    example="snapvm check --deep",
)


def check(
    domain: OptionalDomain = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every memory image.")] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Remove snapvm's volumes that belong to no snapshot; without DOM."
        ),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> Job:
    """Check that every snapshot is whole and nothing is left over."""
    if fix and domain is not None:
        raise typer.BadParameter("it works on all domains; leave DOM out", param_hint="--fix")

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import checking, orphans, severalfailures
        from snapvm.cli import lookup, wiring
        from snapvm.cli.progress import shown
        from snapvm.refusals import Found

        host = wiring.open_host(session.settings(), session)
        with shown(quiet=session.verbose) as progress:
            findings = checking.look(host, domain, progress, deep=deep)
        lookup.warn_if_mistaken(host.settings)
        unnamed = [finding.orphan for finding in findings if finding.orphan is not None]
        removed: tuple[LogicalVolume, ...] = ()
        failures: list[SnapvmError] = []
        if fix and unnamed:
            if not yes:
                _confirm(findings, as_json=as_json)
            with what_is_done_stays():
                removed = orphans.remove(host, unnamed, failures)
            nothing_is_left()
            severalfailures.log_all(failures)
            gone = {volume.dm_uuid for volume in removed}
            findings = tuple(f for f in findings if not f.orphan or f.orphan.dm_uuid not in gone)
            if not as_json:
                named = ", ".join(str(volume.ref) for volume in removed)
                output.say(f"removed {named or 'no volumes'}")
        done = {"removed": [str(volume.ref) for volume in removed]} if fix else {}
        if findings:
            printed = _print_findings(findings, as_json=as_json)
            raise Found(count=len(findings), findings=printed, done=done)
        if as_json:
            output.out_json({**done, "findings": []})
        else:
            output.say("all is in order")

    return Job(json=as_json, run=run)


def _confirm(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Ask before volumes are removed; print all findings when the answer is no."""
    try:
        confirm([_line(f) for f in findings if f.orphan], "removing volumes")
    except NotConfirmed as no:
        raise replace(no, findings=_print_findings(findings, as_json=as_json)) from None


def _print_findings(findings: Iterable[Finding], *, as_json: bool) -> tuple[dict[str, Any], ...]:
    """Print the findings, a line each, unless JSON is wanted; return them as JSON values."""
    output.say_findings(() if as_json else map(_line, findings))
    return tuple(map(_as_values, findings))


def _line(finding: Finding) -> str:
    remedy = f" ({plain(finding.remedy)})" if finding.remedy else ""
    return f"{plain(finding.subject)}: {plain(finding.problem)}{remedy}"


def _as_values(finding: Finding) -> dict[str, Any]:
    return {
        "subject": finding.subject,
        "problem": finding.problem,
        "remedy": finding.remedy,
    }
