"""The command line as Typer knows it: the verbs, and the options that stand before a verb."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from snapvm.cli import (
    catalog,
    check,
    delete,
    doctor,
    look,
    otherwords,
    output,
    prune,
    repair,
    rollback,
    take,
    verify,
)
from snapvm.cli.helptext import Verb
from snapvm.cli.manual import Manual
from snapvm.cli.session import Job, Session
from snapvm.version import VERSION

PROGRAM = "snapvm"

# rich_markup_mode=None: help drawn by rich takes 70 ms more than help written by Typer itself.
app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Start with `snapvm doctor DOM`; see `man snapvm` for everything else.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS: dict[str, tuple[Callable[..., Job], Manual]] = {
    "take": (take.take, take.MANUAL),
    "list": (look.list_snapshots, look.LIST_MANUAL),
    "show": (look.show, look.SHOW_MANUAL),
    "verify": (verify.verify, verify.VERIFY_MANUAL),
    "inspect": (verify.inspect, verify.INSPECT_MANUAL),
    "rollback": (rollback.rollback, rollback.MANUAL),
    "undo": (rollback.undo, rollback.UNDO_MANUAL),
    "delete": (delete.delete, delete.MANUAL),
    "prune": (prune.prune, prune.MANUAL),
    "doctor": (doctor.doctor, doctor.MANUAL),
    "check": (check.check, check.MANUAL),
    "repair": (repair.repair, repair.MANUAL),
    "catalog rebuild": (catalog.rebuild, catalog.MANUAL),
}
"""Every verb, in the order of a snapshot's life, with what the man page tells about it."""

_GROUPS = {"catalog": typer.Typer(rich_markup_mode=None, help=catalog.HELP)}
"""The groups of verbs that have two words, by the first word."""

for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)
for _name, (_function, _manual) in VERBS.items():
    *_before, _word = _name.split()
    _group = _GROUPS[_before[0]] if _before else app
    _group.command(_word, cls=Verb, epilog=_manual.example)(_function)

_NOT_COMPLETED = 1
"""Typer's result when completion was asked for in a shell that has none."""

UsageProblem: type[Exception] = typer.BadParameter.__mro__[1]
"""What Typer raises for a wrong command line: click's class, or Typer's copy, without a public
name."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {VERSION}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def before_the_verb(
    ctx: typer.Context,
    state_dir: Annotated[
        str | None,
        typer.Option(
            "--state-dir",
            metavar="DIR",
            help="The folder of records and memory images (default: /var/lib/snapvm).",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log every step to standard error.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take snapshots of running virtual machines: memory and all LVM disks at one instant."""
    session: Session = ctx.obj
    session.verbose = verbose
    if state_dir is not None:
        session.state_dir = _folder(state_dir)
    if ctx.invoked_subcommand is None:
        output.err(ctx.get_help())
        raise typer.Exit(2)


def _folder(text: str) -> Path:
    """Return the folder of ``--state-dir``; refuse an empty name, as an unset variable gives.

    Nor may it have what the settings refuse: libvirt and xl are told of images in text.
    """
    if not text:
        raise typer.BadParameter("it is empty", param_hint="--state-dir")
    try:
        path = Path(text).absolute()
    except OSError:
        problem = f"{text!r} is below the current folder, which is gone"
        raise typer.BadParameter(problem, param_hint="--state-dir") from None
    if not str(path).isprintable():
        problem = f"{str(path)!r} is not UTF-8, or cannot be printed"
        raise typer.BadParameter(problem, param_hint="--state-dir")
    return path


def parse(arguments: list[str], session: Session) -> Job | int:
    """Return the job that the arguments ask for, or an exit status when Typer has done it all.

    Raises ``UsageProblem`` and ``BadName``.
    """
    parsed = _command().main(arguments, prog_name=PROGRAM, standalone_mode=False, obj=session)
    if parsed == _NOT_COMPLETED:
        problem = "this shell is not supported; call it from bash, zsh or fish"
        raise typer.BadParameter(problem, param_hint="--install-completion")
    return parsed if isinstance(parsed, Job) else int(parsed or 0)


def global_options() -> dict[str, str]:
    """Return the options that stand before the verb, each with how it is typed with its value."""
    return {
        name: f"{name} {option.metavar or ''}".rstrip()
        for option in _command().params
        for name in option.opts
    }


def options_of(verb: str) -> frozenset[str]:
    """Return the options that stand behind a verb; none when ``verb`` is empty."""
    if not verb:
        return frozenset()
    command = _command()
    for word in verb.split():
        command = command.commands[word]
    return frozenset(name for option in command.params for name in option.opts)


def verb_in(arguments: list[str]) -> str:
    """Return the verb of a command line that could not be parsed; empty when it has none."""
    for at, word in enumerate(arguments):
        both = " ".join(arguments[at : at + 2])
        found = next((verb for verb in (both, word) if verb in VERBS), "")
        if found and not _is_a_value(arguments, at):
            return found
    return ""


def instead_in(arguments: list[str]) -> str:
    """Return what to type when the first word of a command line is another program's verb."""
    words = (
        word
        for at, word in enumerate(arguments)
        if not word.startswith("-") and not _is_a_value(arguments, at)
    )
    return otherwords.instead_of(next(words, ""), verb_in(arguments))


def _is_a_value(arguments: list[str], at: int) -> bool:
    return at > 0 and arguments[at - 1] == "--state-dir"


@cache
def _command() -> Any:
    return typer.main.get_command(app)
