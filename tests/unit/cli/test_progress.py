"""Who watches is shown what goes on; a script neither sees it nor waits for what draws it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from snapvm.cli.progress import shown
from snapvm.model import Silent

_SCRIPT = """
import sys
from snapvm.cli import commands, lookup, wiring
from snapvm.cli.progress import shown
with shown(quiet=False):
    print("rich" in sys.modules)
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_script_does_not_import_what_draws() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("quiet", "term", "is_drawn"),
    [(False, "xterm", True), (True, "xterm", False), (False, "dumb", False)],
)
def test_it_is_drawn_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, term: str, is_drawn: bool
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", term)
    with shown(quiet=quiet) as progress:
        progress.phase("reading")
        assert isinstance(progress, Silent) is not is_drawn
    assert ("reading" in screen.getvalue()) is is_drawn


def test_a_terminal_that_goes_away_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback that ssh had left ended as a bug of snapvm's, though all was done."""
    ours, its = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    terminal = os.fdopen(its, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown(quiet=False) as progress:
        progress.phase("exchanging the disks")
        os.close(ours)
        with pytest.raises(OSError, match="Input/output error"):
            print("what the log tells", file=terminal, flush=True)
        progress.phase("starting the domain")
        progress.advance(1, 2)
    with pytest.raises(OSError, match="Input/output error"):
        terminal.close()
