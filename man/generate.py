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

from man import prose
from snapvm import settings
from snapvm.cli import commands
from snapvm.cli.helptext import argument_name, arguments_of
from snapvm.cli.manual import Manual
from snapvm.errors import ExitStatus
from snapvm.settings import Settings
from snapvm.version import VERSION

HERE = Path(__file__).resolve().parent
PAGE = HERE / "snapvm.1"
CHANGELOG = HERE.parent / "CHANGELOG.md"


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
    yield from (".SH DESCRIPTION", *_paragraphs(prose.DESCRIPTION))
    yield from (".SH OPTIONS", *_options(root, context))
    yield ".SH COMMANDS"
    for name in commands.VERBS:
        yield from _verb(name, root, context)
    yield from (".SH SNAPSHOTS", *_paragraphs(prose.NAMES))
    yield ".SH EXIT STATUS"
    for status in ExitStatus:
        yield from _item(str(int(status)), status.meaning)
    yield from (".PP", _text(prose.EXIT_STATUS))
    about, shapes = prose.JSON
    yield from (".SH JSON", _text(about))
    for verb, text in shapes:
        yield from _item(verb, text)
    yield from (".SH ENVIRONMENT", _text(prose.SETTINGS_ORDER))
    for name, text in (*prose.ENVIRONMENT_FIRST, *_settings()):
        yield from _item(name, text)
    yield ".SH FILES"
    for name, text in prose.FILES:
        yield from _item(name, text)
    yield from (".SH NOTES", *_paragraphs(prose.NOTES))
    yield from (".SH SEE ALSO", prose.SEE_ALSO)


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
