"""Ask the user for a yes before something is lost."""

from __future__ import annotations

import sys
from dataclasses import replace

from snapvm.cli import output
from snapvm.cli.words import plain
from snapvm.errors import Interrupted
from snapvm.interrupt import wait_for
from snapvm.refusals import NotConfirmed

_NO_TERMINAL = "there is no terminal to ask on; use --yes to proceed without asking"


def confirm(explanation: list[str], what: str) -> None:
    """Say what is going to happen and ask for a yes; anything else is a no.

    Everything goes to standard error, so that standard output holds only the result.  Raises
    ``NotConfirmed`` for a no, and when there is no terminal to ask at; ``Interrupted``.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NotConfirmed(what=what, remedy=_NO_TERMINAL)
    for line in explanation:
        output.err(plain(line))
    try:
        sys.stderr.write("Continue? [y/N] ")
        sys.stderr.flush()
        wait_for(sys.stdin.fileno())
        answer = sys.stdin.readline()
    except Interrupted as interruption:
        output.err("")
        raise replace(interruption, became="nothing was done") from None
    if not answer.endswith("\n"):
        output.err("")
    if answer.strip().casefold() not in ("y", "yes"):
        raise NotConfirmed(what=what)
