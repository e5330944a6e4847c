"""The entry point of ``snapvm``: it runs the command, reports failures and ends the process.

Whatever happens, the user sees one or two lines and a documented exit status; a traceback goes
into a file.  What takes long to import is imported inside, under the same protection.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from snapvm.cli import failures, output
from snapvm.cli.hiding import hidden
from snapvm.cli.session import Job, Session
from snapvm.errors import ExitStatus, Interrupted, SnapvmError
from snapvm.failures import StorageFailed
from snapvm.interrupt import unheard, watched


def main() -> NoReturn:
    """Run ``snapvm`` with the process's arguments and end the process."""
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        # It came before or after the work, which is watched: there is nothing to put back.
        status = ExitStatus.INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own end would show a traceback
    output.finish()
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run ``snapvm``, report every failure, and return the exit status."""
    output.prepare_streams()
    session = Session()
    try:
        with watched():
            return _run(arguments, session)
    except output.ReaderLeft:
        return ExitStatus.DONE
    except SnapvmError as error:
        with unheard():
            as_json = session.json or failures.wants_json(arguments)
            told, folder = _to_be_told(error), session.unusual_state_dir()
            return failures.tell(told, as_json=as_json, state_dir=folder)
    except Exception as error:
        with unheard():
            return failures.tell_bug(error, session, arguments)


def _to_be_told(error: SnapvmError) -> SnapvmError:
    """Return what a command ends with: a signal hides nothing that somebody has to see to.

    It may come while such a failure is on its way here, and the progress bar is being taken away.
    """
    before = error.__context__ if isinstance(error, Interrupted) else None
    while before is not None:
        if isinstance(before, SnapvmError) and before.exit_status.leaves_work:
            return before
        before = before.__context__
    return error


def _run(arguments: list[str], session: Session) -> int:
    # Typer 0.15 to 0.17 import rich in any case, which is a fifth of what a command imports.
    with hidden("rich"):
        # heavy: typer takes 50 ms to import, and an interruption then must not show a traceback
        from snapvm.cli import commands, completion

    if completion.INSTRUCTION in os.environ:
        return completion.answer(lambda: commands.parse(arguments, session))
    try:
        parsed = commands.parse(arguments, session)
    except commands.UsageProblem as problem:
        verb = commands.verb_in(arguments)
        places = failures.Places(
            verb=verb,
            before=commands.global_options(),
            behind=commands.options_of(verb),
            instead=commands.instead_in(arguments),
        )
        return failures.tell_usage(problem, arguments, places)
    except OSError as error:
        # Only Typer writes while arguments are read: help, or the files of --install-completion.
        if error.filename is None:
            raise output.stdout_failed(error) from error
        raise StorageFailed(path=str(error.filename), why=error.strerror or str(error)) from error
    except SystemExit:
        # Typer raises it when the reader of its help has gone.
        return ExitStatus.DONE
    if not isinstance(parsed, Job):
        return parsed
    session.json = parsed.json
    failures.start_log(verbose=session.verbose, unusual_state_dir=session.unusual_state_dir)
    _warn_of_ignored_variables()
    parsed.run(session)
    return ExitStatus.DONE


def _warn_of_ignored_variables() -> None:
    """Warn of variables that look like settings and are none: one may be misspelt."""
    if any(name.startswith("SNAPVM_") for name in os.environ):
        # heavy: a TOML parser, and most users set no variable of snapvm
        from snapvm import settings

        for warning in settings.ignored_variables():
            output.warn(warning)
