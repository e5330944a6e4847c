"""``snapvm catalog rebuild``: make lost or damaged records anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from snapvm.cli import output
from snapvm.cli.arguments import AsJson
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import counted, local_time, plain, size

if TYPE_CHECKING:
    from snapvm.rebuilding import Rebuilt

HELP = "Work on the records themselves."
MANUAL = Manual(
    prerequisites="LVM shows the volumes of the snapshots; memory images are where they were.",
    success=(
        "Every snapshot whose snapshot.json was lost or damaged, and whose volumes all exist, has "
        "a record again, made from the tags of its volumes, from its memory image and from the "
        "UEFI variables and vTPM state stored with it. Whatever cannot be learnt from these stays "
        "unknown, and the output says so: the note, how long the domain stood still, the checksum "
        "of the image, whether the guest's file systems were frozen. A damaged snapshot.json is "
        "kept beside the new one. A record that can be read, or that was written by a newer "
        "snapvm, is never touched. `--dry-run` only shows what would be done."
    ),
    failure=(
        "Each record that cannot be rebuilt is printed with the reason, and so is each that "
        "another snapvm is working on; the others are rebuilt all the same, and the exit status is "
        "4. To give up such a snapshot, move its folder, which `check` names, out of the state "
        "folder; `check` then finds the volumes left over from it, and `check --fix` removes them."
    ),
    example="snapvm catalog rebuild --dry-run",
)


def rebuild(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show what would be rebuilt.")
    ] = False,
    as_json: AsJson = False,
) -> Job:
    """Rebuild lost or damaged records from LVM tags and memory images."""

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import rebuilding, remaking
        from snapvm.cli import lookup, wiring
        from snapvm.refusals import Found

        host = wiring.open_host(session.settings(), session)
        rebuilt, hopeless = rebuilding.look(host)
        lookup.warn_if_mistaken(host.settings)
        if not dry_run:
            rebuilt, failed = remaking.put_all(host, rebuilt)
            hopeless += failed
        if not as_json:
            deed = "would rebuild" if dry_run else "rebuilt"
            output.say_findings(f"{deed} {_in_words(each)}" for each in rebuilt)
            output.say_findings(
                f"{plain(lost.ref)}: cannot be rebuilt: {plain(lost.why)}" for lost in hopeless
            )
        if hopeless:
            findings = tuple({"subject": lost.ref, "problem": lost.why} for lost in hopeless)
            remedy = "`snapvm check` says what can be done about their volumes and images"
            done = _as_values(rebuilt, dry_run=dry_run)
            raise Found(count=len(hopeless), findings=findings, remedy=remedy, done=done)
        if as_json:
            output.out_json(_as_values(rebuilt, dry_run=dry_run))
        elif not rebuilt:
            output.say("every snapshot has its record")

    return Job(json=as_json, run=run)


def _in_words(rebuilt: Rebuilt) -> str:
    record = rebuilt.record
    disks = counted(len(record.disks), "disk")
    memory = "no memory" if record.memory is None else f"memory {size(record.memory.size_bytes)}"
    when = local_time(record.created)
    unknown = ", ".join(map(plain, rebuilt.unknown))
    return f"{plain(record.ref)} of {when}: {disks}, {memory}; unknown: {unknown}"


def _as_values(rebuilt: tuple[Rebuilt, ...], *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "rebuilt": {each.record.ref: list(each.unknown) for each in rebuilt},
    }
