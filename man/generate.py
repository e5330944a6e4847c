"""Write man/snapvm.1 from the command line, the exit statuses and the settings.

``--check`` writes nothing and fails when the committed page is not what would be written.  The
date is that of the newest entry of CHANGELOG.md, so that the same sources give the same page.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer

from snapvm import settings
from snapvm.cli import commands
from snapvm.cli.helptext import argument_name, arguments_of
from snapvm.cli.manual import Manual
from snapvm.errors import ExitStatus
from snapvm.settings import DEFAULT_FILE, Settings
from snapvm.version import VERSION

HERE = Path(__file__).resolve().parent
PAGE = HERE / "snapvm.1"
CHANGELOG = HERE.parent / "CHANGELOG.md"

DESCRIPTION = (
    (
        "`snapvm take` pauses a running domain for a moment, captures its memory and an LVM "
        "snapshot of each of its disks in that pause, lets it run on, and records them "
        "together. `snapvm rollback` brings memory and disks back together, as often as you like."
    ),
    (
        "Memory and all disks are captured at one instant: always all of them or nothing. No "
        "failure leaves the domain paused. A rollback keeps both the snapshot and the disks that "
        "it replaces. Memory images are ordinary ones, which `virsh restore` or `xl restore` can "
        "start without snapvm."
    ),
)
NAMES = (
    (
        "A snapshot is written DOM@ID. ID is a UTC time stamp such as 20261122T201755Z, or the "
        "`--name` it was given: 1 to 64 letters, digits, `+`, `.` and `-`, the first a letter or "
        "digit. Any prefix that is unique among the domain's snapshots will do, except when "
        "`delete` or `rollback` is given `--yes`. `latest` is the newest one that was taken; it is "
        "refused while there is an unreadable record that may be newer, and so is `undo`. `latest` "
        "is also refused if `delete` or `rollback` had to wait for another snapvm, and that one "
        "has taken a newer snapshot. A snapshot is newer than all that its domain had when it was "
        "taken, whatever the clock said. `latest` and `current` cannot be given as names, nor can "
        "anything that looks like the time stamp of an unnamed snapshot."
    ),
    (
        "DOM is the name that the domain has, or had when the snapshot was taken. If snapshots of "
        "several domains fit, because one was renamed and another now has its name, nothing is "
        "done: give the uuid of the domain you mean in place of DOM, as in "
        "`snapvm show 5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e7f@before-upgrade`."
    ),
    (
        "`snapvm` asks before it discards anything. Without a terminal to ask on, it refuses, "
        "unless `--yes` is given."
    ),
)
EXIT_STATUS = (
    "With `--json` a failure is also printed to standard output as an object whose `error` has "
    "`kind`, `message`, `hint` and `exit_status`; beside it is whatever `check`, `doctor`, "
    "`verify` or `catalog rebuild` found, or what a `delete` or `prune` that failed or was "
    "interrupted had `deleted`, and what is `not_touched`, or what a `repair` has `repaired`. It "
    "is no failure if the reader of standard output goes away early. If standard output accepts "
    "nothing more, as on a full disk, the status is 6 although the work is done, and the message "
    "says so."
)
NOTES = (
    (
        "`sudo` drops variables such as SNAPVM_STATE_DIR: settings that are to apply to everybody "
        "belong in the settings file. A state folder is best used by one host alone. If several "
        "see it, a lock in it keeps them apart if its file system has locks for all of them (NFS "
        "has unless mounted with local_lock or nolock); work begun by another host is left to it."
    ),
    (
        "In a systemd unit, `snapvm` is best the main process, with KillMode=process: with the "
        "default, systemd would also kill the guard that lets the domain run on, and, after a "
        "rollback of a Xen domain, the xl and the QEMU that serve it."
    ),
    (
        "A rollback ends the domain and starts it again. A cluster manager, a unit with "
        "Restart=always, or whatever else starts domains that are off, has to leave this one alone "
        "meanwhile."
    ),
    (
        "docs/automation.md, which comes with the sources, has examples for cron, systemd, "
        "monitors and backups, and says what to do after exit status 7 or 8."
    ),
)
JSON = (
    (
        "What a verb prints with `--json` when it succeeds. Keys may be added. Sizes are in bytes, "
        "times in UTC."
    ),
    (
        (
            "take",
            (
                "The record, as it is in the snapshot.json of the snapshot and as "
                "`snapshot.schema.json` in snapvm's package describes it, and its `ref`, which is "
                "DOM@ID."
            ),
        ),
        (
            "list",
            (
                "An array of such records, each with the `health` of its disks, one per line. Last "
                "come those that cannot be read: they have only their `ref`, `id`, the "
                "`kind`, which is `damaged`, the `domain` and the `problem`."
            ),
        ),
        ("show", "Such a record, with its `health`."),
        (
            "rollback, undo",
            (
                "`ref`, `dry_run`, the `state` the domain is in, the `seconds` it took, `undo`, "
                "which is the ref of the former disks, `clock_set_by_seconds` (null if not set), "
                "`left_out`, an array of what did not come back, each with its `target`, `why` "
                "and, where the domain cannot write to it, `read_only`, "
                "`notes`, an array of other remarks, and `record`. With `--dry-run` only `ref`, "
                "`dry_run`, `would`, an array of what would be done, and `record`."
            ),
        ),
        ("delete", "`deleted`, an array of refs."),
        (
            "prune",
            (
                "`dry_run`, `deleted`, and `kept`: for each ref the rules that keep it. A ref that "
                "two of them would share has the uuid of the domain in place of DOM."
            ),
        ),
        (
            "check",
            (
                "`findings`, each with its `subject`, the `problem` and the `remedy`; with `--fix` "
                "also `removed`, an array of the volumes that were removed."
            ),
        ),
        (
            "doctor",
            (
                "`domain`, `versions`, `capture`, `guest_agent`, `disks`, `omitted`, `free_bytes`, "
                "`in_the_way` and `advice`."
            ),
        ),
        ("repair", "`repaired`, an array of sentences."),
        (
            "catalog rebuild",
            (
                "`dry_run`, and `rebuilt`: for each ref what is no longer known. If "
                "something cannot be rebuilt, also `findings`, each with its `subject` and the "
                "`problem`."
            ),
        ),
        (
            "verify",
            (
                "`sound`; for a libvirt image what was `checked`, for any other its `pages`, "
                "`tables` and `vcpus`, the `counts` of problems and the `findings`."
            ),
        ),
        (
            "inspect",
            (
                "An array of mappings: `va`, `frame`, the rights, and the location of the `entry`; "
                "or, for an address that is not mapped, the reason."
            ),
        ),
    ),
)
SETTINGS_ORDER = (
    "An option overrides a variable, a variable the settings file, and that the default. Settings "
    "that do not exist, and values that cannot be used, are refused; a variable that begins with "
    "SNAPVM_ but is none of these causes a warning."
)
FILES = (
    (
        str(DEFAULT_FILE),
        (
            "The settings, in TOML: the names under ENVIRONMENT in lower case and without SNAPVM_, "
            'such as `state_dir = "/srv/snapvm"`.'
        ),
    ),
    ("/var/lib/snapvm/domains/UUID/ID/", "A snapshot: snapshot.json and the memory image."),
    (
        "/var/lib/snapvm/bug-TIME-*.txt",
        (
            "The details of a bug, for a report: versions, the command line, the last commands "
            "that were run, a traceback; no memory, and nothing of a domain's definition."
        ),
    ),
    ("/run/snapvm/UUID.lock", "The lock held by the snapvm that is working on a domain."),
    (
        "/run/snapvm/VG.group.lock",
        "The lock held by the snapvm that works in a volume group.",
    ),
)
ENVIRONMENT_FIRST = (
    ("SNAPVM_CONFIG", f"The settings file to use instead of {DEFAULT_FILE}."),
    ("NO_COLOR", "If set, output is not coloured."),
)
SEE_ALSO = r".BR virsh (1),\n.BR lvs (8),\n.BR lvmthin (7)".replace(r"\n", "\n")


def page() -> str:
    """Return the man page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    root: Any = typer.main.get_command(commands.app)
    context = root.make_context(commands.PROGRAM, [], resilient_parsing=True)
    yield r".\" Made by man/generate.py from the command line; change it there."
    yield f'.TH SNAPVM 1 "{_date()}" "snapvm {VERSION}" "User Commands"'
    yield from (".SH NAME", r"snapvm \- " + _text(_first_line(root.help).rstrip(".")))
    yield from (".SH SYNOPSIS", r".B snapvm", r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...")
    yield from (".SH DESCRIPTION", *_paragraphs(DESCRIPTION))
    yield from (".SH OPTIONS", *_options(root, context))
    yield ".SH COMMANDS"
    for name in commands.VERBS:
        yield from _verb(name, root, context)
    yield from (".SH SNAPSHOTS", *_paragraphs(NAMES))
    yield ".SH EXIT STATUS"
    for status in ExitStatus:
        yield from _item(str(int(status)), status.meaning)
    yield from (".PP", _text(EXIT_STATUS))
    about, shapes = JSON
    yield from (".SH JSON", _text(about))
    for verb, text in shapes:
        yield from _item(verb, text)
    yield from (".SH ENVIRONMENT", _text(SETTINGS_ORDER))
    for name, text in (*ENVIRONMENT_FIRST, *_settings()):
        yield from _item(name, text)
    yield ".SH FILES"
    for name, text in FILES:
        yield from _item(name, text)
    yield from (".SH NOTES", *_paragraphs(NOTES))
    yield from (".SH SEE ALSO", SEE_ALSO)


def _date() -> str:
    found = re.search(r"^## \S+ \((\d{4}-\d\d-\d\d)\)", CHANGELOG.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("CHANGELOG.md has no entry with a date")
    return found[1]


def _verb(name: str, root: Any, context: Any) -> Iterator[str]:
    _, manual = commands.VERBS[name]
    command, parent = root, context
    for word in name.split():
        group, command = parent, command.get_command(parent, word)
        parent = type(context)(command, info_name=word, parent=group)
    arguments = " ".join(rf"\fI{_text(argument_name(each))}\fR" for each in arguments_of(command))
    yield f".SS {name}"
    yield rf"\fBsnapvm {name}\fR [\fIOPTIONS\fR] {arguments}".rstrip()
    yield from (".PP", _text(_first_line(command.help)))
    for argument in arguments_of(command):
        yield from _item(argument_name(argument), argument.help or "")
    yield from _options(command, parent)
    yield from _manual(manual)


def _manual(manual: Manual) -> Iterator[str]:
    for title, text in (
        ("Prerequisites:", manual.prerequisites),
        ("On success:", manual.success),
        ("On failure:", manual.failure),
    ):
        yield from (".PP", rf"\fI{title}\fR", _text(text))
    if manual.example:
        yield from (".PP", r"\fIExample:\fR", ".PP", ".nf", ".RS 4", _text(manual.example))
        yield from (".RE", ".fi")


def _options(command: Any, context: Any) -> Iterator[str]:
    for option in command.get_params(context):
        record = option.get_help_record(context)
        is_help = context.parent is not None and "--help" in option.opts
        if option.param_type_name == "option" and record is not None and not is_help:
            yield from _item(*record)


def _settings() -> Iterator[tuple[str, str]]:
    """Return each setting as a variable, with the text that stands below its field."""
    (described,) = (
        node
        for node in ast.parse(inspect.getsource(settings)).body
        if isinstance(node, ast.ClassDef) and node.name == Settings.__name__
    )
    texts = {
        str(getattr(before, "target", ast.Name("")).id): str(after.value.value)
        for before, after in zip(described.body, described.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    defaults = Settings()
    for field in fields(Settings):
        default = getattr(defaults, field.name)
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        if isinstance(default, int):  # a size, which the settings file wants as a text
            shown = f"{default >> 10}K"
        yield f"SNAPVM_{field.name.upper()}", f"{texts[field.name]} The default is {shown}."


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def _item(term: str, text: str) -> Iterator[str]:
    yield from (".TP", rf"\fB{_text(term)}\fR", _text(text))


def _paragraphs(texts: tuple[str, ...]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number:
            yield ".PP"
        yield _text(text)


def _text(text: str) -> str:
    """Return ``text`` as roff: nothing in it is a request, `words` in backquotes are bold."""
    safe = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    bold = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", safe)
    return rf"\&{bold}" if bold.startswith(".") else bold


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    wanted = page()
    if "--check" not in arguments:
        PAGE.write_text(wanted)
        return 0
    if PAGE.exists() and PAGE.read_text() == wanted:
        return 0
    print("man/snapvm.1 is not what the command line says: run `make man`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
