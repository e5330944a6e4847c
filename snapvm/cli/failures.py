"""Report failures: a line, a hint and an exit status; also as JSON when that is asked for."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from snapvm.cli import output
from snapvm.cli.session import Session
from snapvm.cli.words import plain
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.version import VERSION

_LIBRARIES = ("typer", "rich", "sh", "tenacity", "numpy", "xxhash", "libvirt-python")
"""What a bug may come from beside snapvm."""

_GUESS = re.compile(r" (\(Possible options: |Did you mean ).*", re.DOTALL)
"""How Typer (click) ends a message when options of that place are like the one that was typed."""


def wants_json(arguments: list[str]) -> bool:
    """Tell whether a command line that could not be parsed asked for JSON."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def tell(error: SnapvmError, *, as_json: bool, state_dir: Path | None = None) -> int:
    """Report a failure that snapvm expects; return its exit status.

    ``state_dir`` is the folder of records, if what is to be typed needs it too.
    """
    kind = type(error).__name__
    details = {**error.details(), **({"repaired": list(error.mended)} if error.mended else {})}
    hint = whole_hint(error, lambda: state_dir, details)
    message, status = error.message(), error.exit_status
    return _tell(kind, message, hint, status, as_json=as_json, details=details)


def whole_hint(
    error: SnapvmError,
    unusual_state_dir: Callable[[], Path | None],
    details: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return what to do about a failure, with the folder of records if that has to be typed too."""
    hint = _needs_root(error) or error.hint()
    # What `check` found has its commands in the details.
    return "; ".join(filter(None, (hint, there_too(f"{hint} {details}", unusual_state_dir))))


def there_too(text: str, unusual_state_dir: Callable[[], Path | None]) -> str:
    """Say that the commands in a text need ``--state-dir`` too; empty where they do not.

    `snapvm repair` without it looks after another folder, and finds nothing to repair.
    """
    # heavy: the verbs and Typer, which have been imported where there was a command line
    from snapvm.cli import commands

    has_command = any(f"snapvm {verb}" in text for verb in commands.VERBS)
    folder = unusual_state_dir() if has_command else None
    if folder is None:
        return ""
    return f"where it says `snapvm`, type `snapvm --state-dir {shlex.quote(str(folder))}`"


def _needs_root(error: SnapvmError) -> str:
    """Return the hint for a file that only root may use; empty for any other failure."""
    is_denied = isinstance(error.__cause__, PermissionError) and os.geteuid() != 0
    return "run snapvm as root" if is_denied else ""


def _tell(
    kind: str,
    message: str,
    hint: str,
    status: ExitStatus,
    *,
    as_json: bool,
    details: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    output.err(f"snapvm: {plain(message)}")
    if hint:
        output.err(f"hint: {plain(hint)}")
    if as_json:
        values = {"kind": kind, "message": message, "hint": hint, "exit_status": int(status)}
        try:
            output.out_json({**details, "error": values})
        except (output.ReaderLeft, SnapvmError):
            # Standard error has the failure already, and its exit status is what counts.
            pass
    return status


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The verb of a command line that could not be parsed, and where its options may stand."""

    verb: str
    """Empty when the line has none."""
    before: Mapping[str, str]
    """The options that stand before any verb, each with how it is typed with its value."""
    behind: Collection[str]
    """The options of this verb, which stand behind it."""
    instead: str
    """What to type in place of another program's verb; empty when the line has none of those."""


def tell_usage(problem: Any, arguments: list[str], places: Places) -> int:
    """Report what is wrong with the command line, in the form of every other failure."""
    context = getattr(problem, "ctx", None)
    option: str = getattr(problem, "option_name", None) or ""
    # Some problems do not say where they arose.
    path = "snapvm" if option in places.before else f"snapvm {places.verb}".rstrip()
    if context is not None:
        path = context.command_path
    message, hint = _with_hint(_in_our_words(problem), option, path, places)
    return _tell("Usage", message, hint, ExitStatus.USAGE, as_json=wants_json(arguments))


def _in_our_words(problem: Any) -> str:
    """Return what Typer says is wrong as our own failures say it."""
    message = str(problem.format_message()).strip().rstrip(".")
    # The newest versions of Typer check values by pydantic, whose words are for programmers.
    message = message.replace(": Value error, ", ": ").replace(": Input should", ": it should")
    message = message.partition(", unable to parse")[0]
    message = re.sub(r"^(Invalid value for )'([^']*)'", r"\1\2", message)  # as where we say it
    return message[:1].lower() + message[1:]


def _with_hint(message: str, option: str, path: str, places: Places) -> tuple[str, str]:
    """Return what is wrong, without a guess of Typer's where more is known, and what to do."""
    if places.instead and message.startswith("no such command"):
        return message.partition(". ")[0], f"`{places.instead}` does that here"
    if option in places.before and path != "snapvm":
        verb = path.removeprefix("snapvm ")
        typed = f"snapvm {places.before[option]} {verb} ..."
        return message, f"{option} goes before the verb: {typed}"
    if option in places.behind and path == "snapvm":
        typed = f"snapvm {places.verb} {option} ..."
        return _GUESS.sub("", message), f"{option} goes after the verb: {typed}"
    return message, f"`{path} --help` shows its options"


def tell_bug(error: Exception, session: Session, arguments: list[str]) -> int:
    """Report an exception that nobody expected; the traceback goes into a file."""
    # heavy: only a bug needs it
    import traceback

    words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    report = "\n".join(
        (
            _about(),
            *_libraries(),
            f"arguments: {shlex.join(arguments)}",
            "last commands:",
            *(f"  {line}" for line in session.last_commands),
            "".join(traceback.format_exception(error)),
        )
    )
    where = _write_report(report, session)
    hint = f"please report it, with {where}" if where else "please report it"
    return _tell(
        type(error).__name__,
        f"a bug in snapvm: {words}",
        hint,
        ExitStatus.BUG,
        as_json=session.json or wants_json(arguments),
    )


def _about() -> str:
    """Say which snapvm this is and what it runs on."""
    system = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    host = f"{system.sysname} {system.release} {system.machine}"
    return f"snapvm {VERSION}, Python {python}, {host}"


def _libraries() -> Iterator[str]:
    # heavy: only a bug needs it
    from importlib import metadata

    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"


def _write_report(report: str, session: Session) -> Path | None:
    """Write a bug report into the state folder, or else the folder for temporary files."""
    # heavy: only a bug needs it
    import tempfile

    folders: list[str] = []
    try:
        folders.append(str(session.settings().state_dir))
    except Exception:
        # The settings may be the very thing that is broken.
        pass
    for folder in (*folders, None):
        try:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            descriptor, path = tempfile.mkstemp(".txt", f"bug-{stamp}-", folder)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(report)
        except OSError:
            continue
        return Path(path)
    return None


def start_log(*, verbose: bool, unusual_state_dir: Callable[[], Path | None]) -> None:
    """Send the log to standard error: everything, or warnings alone.

    Behind the first warning that has a command is the folder of records, if that needs it too.
    """
    # heavy: 8 ms, and neither help nor completion logs anything
    import logging

    class Told(logging.Handler):
        is_place_told = False

        def emit(self, record: logging.LogRecord) -> None:
            text = f"{record.levelname.lower()}: {plain(record.getMessage())}"
            output.err(f"{record.relativeCreated:7.0f} ms {text}" if verbose else text)
            if record.levelno < logging.WARNING or self.is_place_told:
                return
            if there := there_too(text, unusual_state_dir):
                self.is_place_told = True
                output.err(f"hint: {plain(there)}")

    root = logging.getLogger("snapvm")
    root.handlers = [Told()]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING)
    root.propagate = False
    root.debug("%s", _about())
