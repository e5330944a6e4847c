"""``snapvm rollback`` and ``snapvm undo``: bring memory and disks of a snapshot back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from snapvm import naming
from snapvm.cli import output, rollbackwords
from snapvm.cli.arguments import AsJson, CowSizeOption, Domain, Reference, Wait, Yes, as_cow_size
from snapvm.cli.confirm import confirm
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.errors import IdleOption
from snapvm.model import Record

if TYPE_CHECKING:
    from snapvm.askedfor import Asked
    from snapvm.consistency import RollbackDone
    from snapvm.planning import RollbackPlan

MANUAL = Manual(
    prerequisites=(
        "The snapshot is whole and its volumes exist. Nobody but the domain uses its disks, and "
        "nothing on the host is stacked on them (kpartx, LVM). A disk that the domain no longer "
        "has comes back only with a snapshot that has memory, and only while nobody uses it. For a "
        "rollback to a snapshot without memory, a disk that the domain has been given since must "
        "be detached, and one that was attached to the running domain alone must be added to the "
        "definition that it is started from. Nothing keeps memory of the domain for its next start "
        "(virsh managedsave, xendomains), and libvirt is not saving, migrating or backing it up. "
        "Everything else that the domain is started with is where it was, and answers: media in "
        "its drives, read-only disks, kernel, firmware, devices of the host, ports to listen on. "
        "To resume its memory, the host has a processor like the former one, as far as libvirt or "
        "Xen can tell, and on Xen enough memory. The state folder has 4 MiB free for a journal. "
        "All of this is checked before anything is touched. Nobody else starts the domain "
        "meanwhile: a cluster manager has to leave it alone."
    ),
    success=(
        "Memory and disks are those of the snapshot and the domain resumes from that instant. "
        "The former contents of its memory are lost; its former disks are kept as DOM@undo-ID, to "
        "which you can roll back in turn. The snapshot itself is unchanged, and you can roll back "
        "to it again. A snapshot without memory starts the domain afresh from its disks, as after "
        "a power cut; one of a domain that was shut off leaves it shut off, and so does one of a "
        "Xen domain that is off now, which xl cannot start from what it knows. A guest whose "
        "memory came back has the clock of that instant. If its agent answers (libvirt: "
        "qemu-guest-agent), its clock is set, and file systems frozen by `take --quiesce` are "
        "thawed. A clock that cannot be set is reported, but is no failure. UEFI variables and the "
        "state of an emulated TPM come back with the disks, and the present ones are kept with the "
        "present disks. A thin disk returns to its former size, larger or smaller. A thick disk "
        "that has grown since stays as large, and what lies beyond its former end is not touched. "
        "A thick disk that has shrunk is refused. The definition from which libvirt starts the "
        "domain the next time is left as it is: a note names a disk that is not in it, or says "
        "that there is no definition."
    ),
    failure=(
        "If it fails before the domain is ended, everything is put back, and the domain runs on. "
        "If the domain does not start afterwards, the exit status is 8 and its disks are those of "
        "the snapshot. If they are not yet, the message says so: `snapvm repair` continues from "
        "there or, if a snapshot was lost meanwhile, gives the domain its former disks back. If "
        "the host itself goes down in the middle, `snapvm repair`, or the next take, rollback or "
        "delete of the domain, puts the disks in order and leaves the domain off, with status 8: "
        "it may have been run since the host was rebooted, and its memory would not fit its disks. "
        "Another rollback brings both back."
    ),
    example="snapvm rollback demo@before-upgrade",
)

UNDO_MANUAL = Manual(
    prerequisites="DOM was rolled back, and the disks it had before then were not deleted.",
    success=(
        "The disks are those from before the last rollback. No memory was kept from then: the "
        "domain starts afresh from these disks, as after a power cut. The present disks are kept "
        "in turn, so that a second `undo` reverses the first one."
    ),
    failure=(
        "As for `rollback`. If a killed rollback has to be finished or taken back first, `undo` is "
        "then refused, because what there is to go back to has changed."
    ),
    example="snapvm undo demo",
)

Paused = Annotated[bool, typer.Option("--paused", help="Leave the domain paused afterwards.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", help="Check all that it needs, and only show what would be done."
    ),
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not read and check the whole memory image first.")
]
NoSetTime = Annotated[
    bool,
    typer.Option("--no-set-time", help="libvirt: leave the guest's clock at the snapshot's time."),
]


def rollback(
    reference: Reference,
    dry_run: DryRun = False,
    yes: Yes = False,
    paused: Paused = False,
    no_verify: NoVerify = False,
    no_set_time: NoSetTime = False,
    cow_size: CowSizeOption = None,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Go back to a snapshot; the present disks are kept."""
    naming.split_reference(reference)
    keep = as_cow_size(cow_size)

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm.askedfor import Asked
        from snapvm.cli import lookup

        session.override(cow_size=keep, lock_wait_seconds=wait)
        catalog = lookup.catalog_of(session)
        record = lookup.find(catalog, reference, whole=yes or dry_run)
        how = How(
            dry_run=dry_run,
            yes=yes,
            paused=paused,
            verify=not no_verify,
            set_time=not no_set_time,
            as_json=as_json,
        )
        asked = Asked(require_meant=partial(lookup.require_meant, catalog, reference))
        _go_back(session, record, how, asked)

    return Job(json=as_json, run=run)


def undo(
    domain: Domain,
    dry_run: DryRun = False,
    yes: Yes = False,
    paused: Paused = False,
    cow_size: CowSizeOption = None,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Go back to the disks as they were before the last rollback."""
    keep = as_cow_size(cow_size)

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm.askedfor import Asked
        from snapvm.cli import lookup

        session.override(cow_size=keep, lock_wait_seconds=wait)
        record = lookup.newest_undo(lookup.catalog_of(session), domain)
        how = How(dry_run=dry_run, yes=yes, paused=paused, as_json=as_json)
        _go_back(session, record, how, Asked(undoes=True))

    return Job(json=as_json, run=run)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The options of a rollback."""

    dry_run: bool
    yes: bool
    paused: bool
    as_json: bool
    verify: bool = True
    set_time: bool = True


def _go_back(session: Session, record: Record, how: How, asked: Asked) -> None:
    # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
    from snapvm import consistency
    from snapvm.askedfor import Asked
    from snapvm.cli.guard import guarded_host
    from snapvm.cli.progress import shown

    if how.paused and not record.state.is_on:
        why = f"the domain was shut off in {record.ref}, and will be left shut off"
        raise IdleOption(option="--paused", why=why)
    with guarded_host(session) as host:
        if how.dry_run:
            with shown(quiet=session.verbose) as progress:
                plan = consistency.rehearse_rollback(
                    host, record, progress, verify=how.verify, asked=asked
                )
            _foretell(plan, how)
            return
        if not how.yes:
            with shown(quiet=session.verbose) as progress:
                plan = consistency.plan_rollback(host, record, progress, asked)
            told = rollbackwords.explanation(plan, datetime.now(UTC), paused=how.paused)
            confirm(told, f"rollback to {record.ref}")
            # Of what was typed nothing counts any more: who said yes has read which one it is.
            asked = Asked(undoes=asked.undoes, state=plan.domain.state)
        with shown(quiet=session.verbose) as progress:
            done = consistency.rollback(
                host,
                record,
                paused=how.paused,
                verify=how.verify,
                set_time=how.set_time,
                asked=asked,
                progress=progress,
            )
    _tell(done, how, verbose=session.verbose)


def _foretell(plan: RollbackPlan, how: How) -> None:
    """Tell what a rollback would do, of which all is known to be possible."""
    # heavy: as above
    from snapvm.cli import lookup

    told = rollbackwords.explanation(plan, datetime.now(UTC), paused=how.paused)
    if how.as_json:
        would = [line.removeprefix("- ") for line in told]
        ref, record = plan.record.ref, lookup.as_values(plan.record)
        output.out_json({"ref": ref, "dry_run": True, "would": would, "record": record})
        return
    for line in (*told, "Nothing stands in the way. Nothing was done (--dry-run)."):
        output.say(line)


def _tell(done: RollbackDone, how: How, *, verbose: bool) -> None:
    """Tell what a rollback did, and what its user should know besides and has not read before."""
    # heavy: as above
    from snapvm import recordfile
    from snapvm.cli import lookup

    plan = done.plan
    notes = [*done.guest.notes, *rollbackwords.resized(plan), *rollbackwords.foreseen(plan)]
    left_out = rollbackwords.left_out(plan)
    if how.as_json:
        output.out_json(
            {
                "ref": done.plan.record.ref,
                "dry_run": False,
                "state": done.state.value,
                "seconds": round(done.seconds, 3),
                "undo": done.undo.ref,
                "clock_set_by_seconds": done.guest.moved_seconds,
                "left_out": [recordfile.omitted_dict(each) for each in left_out],
                "notes": notes,
                "record": lookup.as_values(done.plan.record),
            }
        )
    else:
        output.say(rollbackwords.summary(done))
    # A user who was asked has read this before.
    untold = left_out if how.yes else []
    # A CD-ROM is no news every time: see `take`.
    untold = [each for each in untold if verbose or not each.read_only]
    for note in (*notes, *(f"not in the snapshot: {each.target}, {each.why}" for each in untold)):
        output.note(note)
