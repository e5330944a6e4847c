"""``snapvm rollback`` and ``snapvm undo``: bring memory and disks of a snapshot back."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from snapvm import naming
from snapvm.cli import output
from snapvm.cli.arguments import AsJson, CowSizeOption, Domain, Reference, Wait, Yes, as_cow_size
from snapvm.cli.confirm import confirm
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import age, counted, local_time, milliseconds, size
from snapvm.errors import IdleOption
from snapvm.model import DomainState, OmittedDisk, Record, VolumeKind

if TYPE_CHECKING:
    from snapvm.askedfor import Asked
    from snapvm.consistency import RollbackDone
    from snapvm.planning import RollbackPlan

MANUAL = Manual(
    prerequisites=(
        "The snapshot is whole and its volumes are there. Nobody but the domain uses its disks, "
        "and nothing of the host lies on them (kpartx, LVM). A disk that the domain no longer has "
        "comes back only with a snapshot that has memory, and only while nobody uses it. A disk "
        "that the domain has been given since has to be detached before a rollback to a snapshot "
        "without memory. Nobody keeps memory of the domain for its next start (virsh managedsave, "
        "xendomains), and libvirt does not save, migrate or back it up. All else the domain is "
        "started with is where it was, and answers: media in its drives, read-only disks, kernel, "
        "firmware, devices of the host, ports to listen at. For its memory the host has a "
        "processor like that of then, as far as libvirt or Xen can tell, and on Xen enough memory. "
        "The state folder has 4 MiB free for a journal. All of this is checked before anything is "
        "touched. Nobody else starts the domain meanwhile: a cluster manager has to leave it "
        "alone."
    ),
    success=(
        "Memory and disks are those of the snapshot and the domain goes on from that instant. "
        "What it had in memory before is gone; the disks it had are kept as DOM@undo-ID, to which "
        "one can roll back in turn. The snapshot stays as it is and can be gone back to again. "
        "A snapshot without memory starts the domain afresh from its disks, as after a power cut; "
        "one of a domain that was shut off leaves it shut off, and so does one of a Xen domain "
        "that is off now, which xl cannot start from what it knows. A guest whose memory came back "
        "has the clock of that instant. Where its agent answers (libvirt: qemu-guest-agent), its "
        "clock is set, and file systems that `take --quiesce` had frozen go on. A clock that "
        "cannot be set is told of and fails nothing. UEFI variables and the state of an emulated "
        "TPM come back with the disks, and the present ones are kept with the present disks. "
        "A thin disk has its former size again, larger or smaller. A thick one that has grown "
        "since stays as large, and the part behind its former end is not touched. A thick disk "
        "that has shrunk is refused. The definition from which libvirt starts the domain the next "
        "time is left as it is: a note tells of a disk that is not in it, or that there is none."
    ),
    failure=(
        "A failure before the domain is ended puts everything back, and the domain runs on. If it "
        "does not start afterwards, the exit status is 8 and its disks are those of the snapshot. "
        "If they are not yet, the message says so: `snapvm repair` goes on from there or, when a "
        "snapshot was lost meanwhile, gives the domain back the disks it had. When the host "
        "itself goes down in the middle, `snapvm repair`, or the next take, rollback or delete of "
        "the domain, puts the disks in order and leaves the domain off, with status 8: whoever "
        "booted the host may have run it since, and its memory would not fit its disks. Another "
        "rollback brings both back."
    ),
    example="snapvm rollback demo@before-upgrade",
)

UNDO_MANUAL = Manual(
    prerequisites="DOM was rolled back, and what was current then was not deleted.",
    success=(
        "The disks are those that were current before the last rollback. No memory was kept of "
        "that moment: the domain starts afresh from them, as after a power cut. What is current "
        "now is kept in turn, so that a second `undo` takes the first one back."
    ),
    failure=(
        "As for `rollback`. A rollback that was killed is finished or taken back first, and `undo` "
        "is refused then: what there is to go back to is another."
    ),
    example="snapvm undo demo",
)

_DOING = {
    DomainState.RUNNING: "running again",
    DomainState.PAUSED: "paused",
    DomainState.SHUTOFF: "shut off",
}


Paused = Annotated[bool, typer.Option("--paused", help="Leave the domain paused at that instant.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not check all of the memory image first.")
]
NoSetTime = Annotated[
    bool,
    typer.Option("--no-set-time", help="libvirt: leave the guest's clock at the snapshot's time."),
]


def rollback(
    reference: Reference,
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
        record = lookup.find(catalog, reference, whole=yes)
        how = How(
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
    yes: Yes = False,
    paused: Paused = False,
    cow_size: CowSizeOption = None,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Go back to the disks that were current before the last rollback."""
    keep = as_cow_size(cow_size)

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm.askedfor import Asked
        from snapvm.cli import lookup

        session.override(cow_size=keep, lock_wait_seconds=wait)
        record = lookup.newest_undo(lookup.catalog_of(session), domain)
        _go_back(session, record, How(yes=yes, paused=paused, as_json=as_json), Asked(undoes=True))

    return Job(json=as_json, run=run)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """The options of a rollback."""

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
        why = f"the domain was shut off in {record.ref}, and is left so"
        raise IdleOption(option="--paused", why=why)
    with guarded_host(session) as host:
        if not how.yes:
            with shown(quiet=session.verbose) as progress:
                plan = consistency.plan_rollback(host, record, progress, asked)
            told = explanation(plan, datetime.now(UTC), paused=how.paused)
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


def _tell(done: RollbackDone, how: How, *, verbose: bool) -> None:
    """Tell what a rollback did, and what its user should know besides and has not read before."""
    # heavy: as above
    from snapvm import recordfile
    from snapvm.cli import lookup

    notes = [*done.guest.notes, *resized(done.plan), *foreseen(done.plan)]
    left_out = _left_out(done.plan)
    if how.as_json:
        output.out_json(
            {
                "ref": done.plan.record.ref,
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
        output.say(summary(done))
    # A user who was asked has read this before.
    untold = left_out if how.yes else []
    # A CD-ROM is no news every time: see `take`.
    untold = [each for each in untold if verbose or not each.read_only]
    for note in (*notes, *(f"not of the snapshot: {each.target}, {each.why}" for each in untold)):
        output.note(note)


def explanation(plan: RollbackPlan, now: datetime, *, paused: bool) -> list[str]:
    """Return lines that say what a rollback is going to do."""
    record = plan.record
    disks = counted(len(record.disks), "disk")
    what = f"memory and {disks}" if record.memory is not None else f"{disks}, no memory,"
    when = f"{local_time(record.created, precise=True)}, {age(record.created, now)}"
    return [
        f"Back to {record.ref}: {what} of {when}.",
        *_losses(plan),
        *(f"- {text[0].upper()}{text[1:]}." for text in (*resized(plan), *foreseen(plan))),
        *(f"- Not of the snapshot: {each.target}, {each.why}." for each in _left_out(plan)),
        f"- Its present disks are kept, as {record.domain}@undo-... (`snapvm list` shows it).",
        f"- {_afterwards(plan, paused=paused)}",
    ]


def resized(plan: RollbackPlan) -> list[str]:
    """Say what becomes of each disk whose size has changed since the snapshot."""
    then = {disk.target: disk.size_bytes for disk in plan.record.disks}
    told = []
    for disk in plan.disks:
        former, now = size(then[disk.target]), size(disk.size_bytes)
        if disk.size_bytes == then[disk.target]:
            continue
        if disk.kind is VolumeKind.THIN:
            told.append(f"disk {disk.target}, now {now}, is {former} again")
        else:
            told.append(f"disk {disk.target} stays {now}; the part behind {former} is not touched")
    return told


def foreseen(plan: RollbackPlan) -> list[str]:
    """Say what the next start of the domain will not find as the rollback leaves it."""
    name = shlex.quote(plan.domain.name)
    if plan.is_forgotten:
        keep = f"virsh dumpxml --security-info {name} >FILE; virsh define FILE"
        told = "libvirt has no definition of the domain, and forgets it when it is shut off"
        return [f"{told}; to keep it, when it runs: {keep}"]
    disks = {disk.target: disk.current for disk in plan.disks}
    return [
        f"{disks[target]}, disk {target} of the snapshot, is not in the domain's definition: "
        f"booted from that, the domain goes without it (virsh edit {name})"
        for target in plan.unbooted
    ]


def _left_out(plan: RollbackPlan) -> list[OmittedDisk]:
    """Return the parts of the domain that the rollback neither brings back nor keeps."""
    why = "a disk that stays as it is"
    stays = [OmittedDisk(target=target, why=why) for target in plan.others]
    found = {each.target: each for each in (*plan.record.omitted, *plan.omitted, *stays)}
    return list(found.values())


def _losses(plan: RollbackPlan) -> list[str]:
    if plan.is_forgotten:
        return ["- libvirt does not know the domain now: it must not run on another host."]
    state = plan.domain.state
    if state is DomainState.SHUTOFF:
        return [f"- The domain is {state.value} now."]
    return [f"- The domain is {state.value} now: what it has in memory is discarded."]


def _afterwards(plan: RollbackPlan, *, paused: bool) -> str:
    record = plan.record
    if not record.state.is_on:
        return "It was shut off then, and is afterwards."
    if not plan.is_started:
        return "It is off and stays so: start it from its own configuration file afterwards."
    if record.memory is None:
        how = "is started, paused," if paused else "starts"
        return f"It {how} afresh from these disks, as after a power cut."
    if paused or record.state is DomainState.PAUSED:
        return "It is left paused at that instant."
    return "It runs on from that instant."


def summary(done: RollbackDone) -> str:
    """Return the one line that says what a rollback did."""
    state = _DOING.get(done.state, done.state.value)
    return (
        f"{done.plan.record.domain} is back at {done.plan.record.ref} and {state}{_clock(done)}, "
        f"{milliseconds(done.seconds * 1000)} in all; what was current is {done.undo.ref}"
    )


def _clock(done: RollbackDone) -> str:
    """Say how far the guest's clock was moved; empty when nobody set it."""
    moved_seconds = done.guest.moved_seconds
    if moved_seconds is None:
        return ""
    direction = "back" if moved_seconds < 0 else "forward"
    return f", its clock set {direction} by {abs(moved_seconds):.0f} s"
