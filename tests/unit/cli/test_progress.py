"""Who watches is shown what goes on; a script neither sees it nor waits for what draws it."""

from __future__ import annotations

import io
import logging
import os
import pty
import select
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest

from snapvm.cli import aside, failures
from snapvm.cli.progress import shown
from snapvm.model import Silent
from tests.fakes.instants import instants_of, interrupted_at

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


def test_the_cursor_comes_back_whatever_the_instant_of_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shell behind it had none."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")

    def draw() -> None:
        with shown(quiet=False) as progress:
            progress.phase("reading")

    modules = ("rich.live", "snapvm.cli.render")
    places = {instant[:-1]: instant for instant in instants_of(draw, modules)}
    for instant in places.values():
        how, drawn = interrupted_at(draw, modules, instant, screen.getvalue)
        assert how in ("done", "interrupted"), instant
        assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h"), instant


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


@contextmanager
def stopped_terminal() -> Iterator[tuple[int, int]]:
    """Yield the two ends of a terminal at which somebody has typed Ctrl-S; then he types Ctrl-Q."""
    ours, its = pty.openpty()
    termios.tcflow(its, termios.TCOOFF)
    yield ours, its
    termios.tcflow(its, termios.TCOON)


@contextmanager
def full_pipe(*, waits: bool = True) -> Iterator[tuple[int, int]]:
    """Yield the two ends of a pipe into which nothing more goes; then it is emptied."""
    ours, its = os.pipe()
    os.set_blocking(its, False)
    size = 0
    while True:
        try:
            size += os.write(its, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(its, waits)
    yield ours, its
    while size:
        size -= len(os.read(ours, size))


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (stopped_terminal, b"making snapshots"),
        (full_pipe, b"it says no\n"),
        # As one that is shared with an event loop: the warning was lost.
        (partial(full_pipe, waits=False), b"it says no\n"),
    ],
)
def test_one_that_takes_nothing_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
    where: Callable[[], AbstractContextManager[tuple[int, int]]],
    what: bytes,
) -> None:
    """A domain stood still until somebody typed Ctrl-Q, or left the copy mode of screen(1)."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(aside, "GOODBYE_SECONDS", 0.1)
    log = logging.getLogger("snapvm.test")

    def work() -> None:
        failures.start_log(verbose=False, unusual_state_dir=lambda: None)
        with shown(quiet=False) as progress:
            progress.phase("making snapshots")
            log.warning("it says no")
            progress.advance(1, 2)

    with where() as (ours, its):
        monkeypatch.setattr(sys, "stderr", os.fdopen(its, "w", encoding="utf-8", closefd=False))
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        worker.join(10)
        assert not worker.is_alive()
    told = b""
    while not (what in told and b"it says no" in told):
        assert select.select([ours], [], [], 10)[0], told
        told += os.read(ours, 4096)
