"""A snapvm that dies at a crash point, or to which something happens there.

It is a fork of this process, in which everything is imported already: under emulation, to start
Python takes longer than what is tried.  This process adopts whatever the dead one leaves running,
its guard and its lvm, and so knows when they are done.

``python3 -m tests.lab.host.deaths POINT SCRIPT ARGUMENT...`` runs ``snapvm ARGUMENT...``, and a
shell script in it when it comes to the point; its status is that of snapvm, or 99 when it never
came there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from snapvm import checking, consistency, crashpoint
from snapvm.cli import app, commands, guard, wiring
from snapvm.hypervisor import libvirt, xen, xencapture
from tests.lab.host.patience import patient
from tests.lab.host.verbs import Way

WARM = (checking, consistency, commands, guard, wiring, libvirt, xen, xencapture)
"""What a command would import when it runs."""
NEVER_CAME: Final = 99
COMMAND_SECONDS: Final = 240
ORPHAN_SECONDS: Final = 120
_SUBREAPER: Final = 36
"""PR_SET_CHILD_SUBREAPER (linux/prctl.h)."""
_OTHERS = ("xl", "qemu-system", "dmeventd")
"""Beginnings of programs that stay by intent: they look after a domain, or after pools."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    status: int
    """Negative: the signal that killed it."""
    said: str
    at: float
    """When it came to its point (``time.time()``); 0 when it did not."""

    def require(self, *statuses: int) -> None:
        """Raise ``AssertionError`` unless it ended in one of these ways, without a traceback."""
        assert self.status in statuses, f"status {self.status}: {self.said}"
        assert "Traceback" not in self.said, self.said


def adopt_orphans() -> None:
    """Become the parent of what children leave behind."""
    assert ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) == 0


def run(
    arguments: Sequence[str],
    *,
    point: str = "",
    deed: Callable[[], object] = lambda: None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run snapvm to its end; do something in it, once, when it comes to a crash point."""
    hear, tell = os.pipe()
    sys.stdout.flush()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _be_snapvm(arguments, point, partial(_note_and_do, tell, deed), env or {}, said)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    os.close(tell)
    os.set_blocking(hear, False)
    with os.fdopen(hear, "rb") as pipe, suppress(BlockingIOError):
        noted = pipe.read() or b""
    at = float(noted.split()[0]) if noted else 0.0
    return Ended(status=os.waitstatus_to_exitcode(status), said=text, at=at)


def points(arguments: Sequence[str]) -> list[str]:
    """Let a command live, and return every point it passes, in order."""
    done = run(arguments, env={crashpoint.VARIABLE: crashpoint.LIST})
    done.require(0)
    prefix = crashpoint.PREFIX
    lines = done.said.splitlines()
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


def die(arguments: Sequence[str], point: str, way: Way, env: Mapping[str, str]) -> Ended:
    """Let a command come to a point and die there."""
    return run(arguments, point=point, deed=lambda: _strike(way), env=env)


def wait_for_orphans() -> None:
    """Return when nothing that a command left runs any more; ``AssertionError`` when it does."""
    deadline = time.monotonic() + patient(ORPHAN_SECONDS)
    while left := _children():
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


def _be_snapvm(
    arguments: Sequence[str],
    point: str,
    deed: Callable[[], object],
    env: Mapping[str, str],
    said: BinaryIO,
) -> None:
    """Run in the child, and end it."""
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        os.environ.update(env)
        crashpoint._wanted = env.get(crashpoint.VARIABLE, point)
        if point:
            _watch_for(point, deed)
        signal.alarm(round(patient(COMMAND_SECONDS)))
        status = app.run(list(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _watch_for(point: str, deed: Callable[[], object]) -> None:
    def pass_by(name: str) -> None:
        if name == point:
            deed()

    setattr(crashpoint, "_pass", pass_by)  # noqa: B010 - a function of the module is replaced


def _note_and_do(pipe: int, deed: Callable[[], object]) -> None:
    os.write(pipe, f"{time.time()}\n".encode())
    deed()


def _strike(way: Way) -> None:
    me = os.getpid()
    if way in (Way.BOTH, Way.GUARD):
        for pid in _guards(me):
            os.kill(pid, signal.SIGKILL)
    match way:
        case Way.SNAPVM | Way.BOTH:
            os.kill(me, signal.SIGKILL)
        case Way.INT | Way.TERM:
            os.kill(me, signal.Signals[f"SIG{way.upper()}"])


def _guards(parent: int) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-x", "snapvm-guard"], capture_output=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def _children() -> list[str]:
    """Return the commands of this process's children, those that stay by intent left out."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    left = []
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if not name.startswith(_OTHERS) and b"tests.lab.host.running" not in words:
                left.append(b" ".join(words).decode(errors="replace").strip() or name)
    return left


def main() -> None:
    """Run one command with a script at its point."""
    point, script, *arguments = sys.argv[1:]
    act = ["bash", "-c", script]
    done = run(arguments, point=point, deed=lambda: subprocess.run(act, check=False))
    sys.stderr.write(done.said)
    sys.exit(done.status if done.at else NEVER_CAME)


if __name__ == "__main__":
    main()
