"""``snapvm take``: capture a running domain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from snapvm import capturewords, compression, naming
from snapvm.cli import output
from snapvm.cli.arguments import AsJson, CowSizeOption, Domain, Wait, as_cow_size
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.cli.words import counted, milliseconds, plain, size
from snapvm.compression import Compression
from snapvm.errors import IdleOption
from snapvm.model import (
    CaptureMethod,
    DomainState,
    ForeignPtes,
    HypervisorKind,
    ImageFormat,
    Record,
)

NOTE_LIMIT = 1000
"""The most characters of a note, which is for a line in a list and not for a document."""

MANUAL = Manual(
    prerequisites=(
        "Every writable disk of DOM is a logical volume. The domain is running, paused or shut "
        "off, but one that is shut off is known to libvirt alone, and not to xl. Then only its "
        "disks are captured; nobody else uses them, and libvirt keeps no memory of it for its next "
        "start (virsh managedsave). If a libvirt domain is paused, its memory can be captured only "
        "by `background`, unless --stop ends it: after any other method QEMU would not save it "
        "again before it has run. There is room for the memory in the state folder and for the "
        "snapshots in the volume groups. Nobody begins to save or migrate the domain meanwhile: "
        "that makes the take fail, and a Xen HVM or PVH domain would be damaged at its "
        "destination, which Xen does not report."
    ),
    success=(
        "Memory and all disks, captured at one instant, are recorded as DOM@ID. The domain stood "
        "still for the time that is printed, and then does what it did before; one that its owner "
        "had paused is still paused. The memory of a libvirt domain is captured in one of four "
        "ways: `background` writes it behind the running guest and has the shortest pause; "
        "`precopy` and `libvirt` write it while the guest runs, and the last of it in the pause; "
        "`stop` writes all of it in the pause. Memory and disks fit together without --quiesce. "
        "With --quiesce the disks can also be used without the memory, for a backup or to boot "
        "from, since they then hold what the guest had not yet written; its programs cannot write "
        "from shortly before the pause until its end (with `precopy` for some seconds, with "
        "`libvirt` for as long as memory is written). The files of a libvirt domain's UEFI "
        "variables and emulated TPM are copied in the same pause. CD-ROMs, read-only disks, and "
        "devices and folders of the host are left out, and `show` lists them; a note names those "
        "that DOM can write to, and with --verbose all of them."
    ),
    failure=(
        "The domain runs on, and nothing is kept: no volume, no image, no record. If somebody "
        "else pauses or ends the domain meanwhile, it is left so. A domain that cannot be captured "
        "whole is refused before it is touched, and so is --quiesce if no agent answers in the "
        "guest. Frozen file systems are thawed, whatever failed. If somebody resumes the domain "
        "while --stop is writing its memory, the domain is not ended: the snapshot is kept, and "
        "the exit status is 8."
    ),
    example="snapvm take demo --name before-upgrade --note 'kernel 6.12 still'",
)


def take(
    domain: Domain,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="The id of the snapshot; by default the time in UTC."
        ),
    ] = None,
    note: Annotated[
        str,
        typer.Option(
            "--note",
            metavar="TEXT",
            help="A remark that `list` and `show` print.",
            show_default=False,
        ),
    ] = "",
    disk_only: Annotated[
        bool, typer.Option("--disk-only", help="Capture only the disks, without memory.")
    ] = False,
    capture: Annotated[
        CaptureMethod | None,
        typer.Option(
            "--capture",
            help="libvirt: how memory is captured; by default the method with the shortest pause "
            "that works here.",
        ),
    ] = None,
    foreign_ptes: Annotated[
        ForeignPtes | None,
        typer.Option(
            "--foreign-ptes",
            help="Xen: zero a guest's mappings of pages that are not its own (the default), or "
            "refuse such a guest.",
        ),
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(
            "--compress",
            metavar="HOW",
            help="libvirt: compress the memory image: none (the default), zstd or zstd:LEVEL.",
            show_default=False,
        ),
    ] = None,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option(
            "--image-format",
            help="libvirt: plain, as QEMU writes it; or sparse, which several threads can restore "
            "at once, but which is not compressed. By default plain, if libvirt can restore that.",
        ),
    ] = None,
    cow_size: CowSizeOption = None,
    stop: Annotated[
        bool,
        typer.Option(
            "--stop", help="Shut the domain off once it is captured; a rollback resumes it."
        ),
    ] = False,
    quiesce: Annotated[
        bool,
        typer.Option(
            "--quiesce",
            help="libvirt: have the guest agent freeze the file systems first, so that the disks "
            "are usable without the memory.",
        ),
    ] = False,
    wait: Wait = None,
    as_json: AsJson = False,
) -> Job:
    """Capture memory and all disks of a domain at one instant."""
    if name is not None:
        naming.check_name(name)
    _check_note(note)
    keep, smaller = as_cow_size(cow_size), _as_compression(compress)
    if stop and disk_only:
        problem = "the domain's memory would be lost; leave one of the two out"
        raise typer.BadParameter(problem, param_hint="--stop --disk-only")
    about_memory = {
        "--capture": capture,
        "--foreign-ptes": foreign_ptes,
        "--compress": compress,
        "--image-format": image_format,
    }
    if disk_only:
        _refuse_idle([option for option, value in about_memory.items() if value is not None])

    def run(session: Session) -> None:
        # heavy: drivers, sh and their parsers; `snapvm --help` answers in 0.15 s without them
        from snapvm import consistency
        from snapvm.cli import lookup
        from snapvm.cli.guard import guarded_host
        from snapvm.cli.progress import shown

        session.override(
            capture=capture,
            foreign_ptes=foreign_ptes,
            compress=smaller,
            image_format=image_format,
            cow_size=keep,
            lock_wait_seconds=wait,
        )
        request = consistency.TakeRequest(
            domain=domain,
            name=name,
            note=note,
            with_memory=not disk_only,
            stop=stop,
            quiesce=quiesce,
        )
        with guarded_host(session) as host, shown(quiet=session.verbose) as progress:
            _require_heeded(foreign_ptes, host.hypervisor.kind)
            record = consistency.take(host, request, progress)
        if as_json:
            output.out_json(lookup.as_values(record))
        else:
            output.say(summary(record, stopped=stop))
        for remark in _remarks(record, all_of_them=session.verbose):
            output.note(remark)

    return Job(json=as_json, run=run)


def _require_heeded(foreign_ptes: ForeignPtes | None, kind: HypervisorKind) -> None:
    if foreign_ptes is not None and kind is not HypervisorKind.XEN:
        raise IdleOption(option="--foreign-ptes", why=f"{kind} has no Xen guests")


def _refuse_idle(options: list[str]) -> None:
    """Refuse options about memory when no memory is captured."""
    if options:
        problem = f"it is about memory, and none is captured; leave {options[0]} out"
        raise typer.BadParameter(problem, param_hint=f"{options[0]} --disk-only")


def _remarks(record: Record, *, all_of_them: bool) -> Iterator[str]:
    """Yield what the user should know about the new snapshot, beside its summary.

    A CD-ROM is told of only when ``all_of_them`` are wanted: a note in the mail of every night
    would have its reader throw all notes away.
    """
    if capturewords.tells_of_worse(record.capture):
        yield record.capture
    for omitted in record.omitted:
        if all_of_them or not omitted.read_only:
            yield f"{omitted.target} was left out: {omitted.why}"


def _as_compression(text: str | None) -> Compression | None:
    if text is None:
        return None
    try:
        return compression.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}", param_hint="--compress") from None


def _check_note(note: str) -> None:
    if len(note) > NOTE_LIMIT:
        problem = f"it has {len(note)} characters, {NOTE_LIMIT} are allowed"
        raise typer.BadParameter(problem, param_hint="--note")
    try:
        note.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("it is not valid UTF-8", param_hint="--note") from None


def summary(record: Record, *, stopped: bool = False) -> str:
    """Return the one line that says what a `take` made."""
    end = f"{plain(record.domain)} is shut off, " if stopped else ""
    return f"{plain(record.ref)}: {_contents(record)}; {end}{_times(record)}"


def _contents(record: Record) -> str:
    instant = f"{counted(len(record.disks), 'disk')} captured at one instant"
    if record.quiesced:
        instant += ", file systems frozen"
    if record.memory is not None:
        return f"memory {size(record.written_bytes)} and {instant}"
    shut_off = record.state is DomainState.SHUTOFF
    why = "the domain is shut off" if shut_off else "--disk-only"
    return f"{instant}, no memory ({why})"


def _times(record: Record) -> str:
    total = f"{milliseconds(record.timing.total_ms)} in all"
    if not record.timing.pause_ms:
        return total
    return f"paused {milliseconds(record.timing.pause_ms)}, {total}"
