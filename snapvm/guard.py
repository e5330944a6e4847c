"""A second process that makes the domain run again when snapvm dies inside the window.

SIGKILL leaves no time for a ``finally``.  The guard waits on a pipe whose other end only snapvm
holds: ``done`` dismisses it; the end of the pipe without it means that snapvm is dead, and the
guard does at once what ``snapvm repair`` would do, beginning with the resume.

It is a fork, made before there are threads, locks or connections: what it needs is imported by
then, where a Python of its own took 3 s to start in the lab, a quarter of a rollback.
"""

from __future__ import annotations

import json
import os
import select
import signal
import syslog
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from snapvm import crashpoint
from snapvm.clock import Deadline
from snapvm.model import Domain, DomainUuid
from snapvm.refusals import HostLacks

NAME = "snapvm-guard"
READY_SECONDS = 120.0
GOODBYE_SECONDS = 30.0

_READY = "ready"
_DISMISS = "done"
_LINE_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Post:
    """The guard's own end: what it is told, and what it tells."""

    orders: TextIO
    answers: int

    def domain(self) -> tuple[DomainUuid, str] | None:
        """Wait for the domain to watch, its uuid and its name; None when there is to be none."""
        line = self.orders.readline()
        if line.rstrip("\n") in ("", _DISMISS):
            return None
        uuid, name = json.loads(line)
        return DomainUuid(uuid), str(name)

    def ready(self) -> None:
        """Tell that the domain is watched from now on."""
        self._tell(_READY)

    def cannot(self, why: str) -> None:
        """Tell why there is going to be no watch."""
        self._tell(f"cannot: {' '.join(why.split())}")

    def is_dismissed(self) -> bool:
        """Wait for the end; tell whether all is well, or snapvm is just dead."""
        return self.orders.readline().rstrip("\n") == _DISMISS

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # whoever was to read it is dead
            os.write(self.answers, f"{line}\n".encode()[:_LINE_LIMIT_BYTES])


class Guard:
    """A guard that stands by; it learns which domain to watch, and is dismissed."""

    def __init__(self, pid: int, orders: int, answers: int) -> None:
        self._pid = pid
        self._orders = orders
        self._answers = answers

    @contextmanager
    def watching(self, domain: Domain) -> Iterator[Guard]:
        """Have it watch a domain; it is dismissed however the block ends while snapvm lives.

        Also when the domain could not be made to run (exit status 8): its owner has been told by
        then, and may let it run and pause it again for a reason of his own, or call `repair`.
        Nothing tells his pause from ours, and a guard at work would lock him out.
        """
        self._order(json.dumps([domain.uuid, domain.name]))
        try:
            yield self
        finally:
            self.dismiss()

    def wait_until_ready(self) -> None:
        """Return when it stands watch; raise ``HostLacks`` when it cannot, before any effect."""
        said = self._hear(READY_SECONDS)
        if said != _READY:
            raise HostLacks(
                what=f"a guard process that works ({said or 'it does not answer'})",
                # One that has died of a bug has told the log alone.
                remedy=f"`snapvm --verbose repair` and `journalctl -t {NAME}` tell more",
            )

    def dismiss(self) -> None:
        """Send it home: all is well, or has been put back."""
        self._order(_DISMISS)

    def close(self) -> None:
        """Let go of it, and wait a while for its end."""
        os.close(self._orders)
        deadline = Deadline(GOODBYE_SECONDS)
        while self._hear(deadline.left_seconds):
            pass
        os.close(self._answers)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG if not deadline.left_seconds else 0)

    def _order(self, line: str) -> None:
        with suppress(BrokenPipeError):  # a dead one is noticed by its silence
            os.write(self._orders, f"{line}\n".encode())

    def _hear(self, limit_seconds: float) -> str:
        """Return what it says, without the line's end; empty for nothing in time, or never more."""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if not poll.poll(limit_seconds * 1000):
            return ""
        # A line is shorter than PIPE_BUF, so it comes whole, and there is one at a time (pipe(7)).
        return os.read(self._answers, _LINE_LIMIT_BYTES).decode(errors="replace").rstrip("\n")


@contextmanager
def standing_by(stand: Callable[[Post], None]) -> Iterator[Guard]:
    """Have a process that runs ``stand`` beside the block, which inherits nothing but its pipes.

    Raises ``HostLacks`` when there can be none.
    """
    with ExitStack() as opened:
        try:
            orders_in, orders_out = _pipe(opened)
            answers_in, answers_out = _pipe(opened)
            pid = os.fork()
        except OSError as error:
            what = f"room for a guard process ({error.strerror or error})"
            raise HostLacks(what=what, remedy="try later") from None
        opened.pop_all()
    if pid == 0:
        _become(stand, orders_in, answers_out)
    os.close(orders_in)
    os.close(answers_out)
    guard = Guard(pid, orders_out, answers_in)
    try:
        yield guard
    finally:
        guard.dismiss()
        guard.close()


def _pipe(opened: ExitStack) -> tuple[int, int]:
    """Return the end of a pipe to read from and that to write to, which ``opened`` closes."""
    ends = os.pipe()
    for end in ends:
        opened.callback(os.close, end)
    return ends


def _become(stand: Callable[[Post], None], orders: int, answers: int) -> NoReturn:
    """Be the guard: deaf to the signals that snapvm may get, and holding none of its files."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_DAEMON)
        _let_go_of_all_but({orders, answers})
        crashpoint.forget()
        with suppress(OSError):  # a name is for whoever looks at ps
            Path("/proc/self/comm").write_text(NAME)
        with os.fdopen(orders, encoding="utf-8") as told:
            stand(Post(told, answers))
    except Exception:
        _log_bug()
    finally:
        os._exit(0)


def _log_bug() -> None:
    """Leave a trace where an administrator looks who finds a domain paused."""
    # heavy: nobody but a guard with a bug needs it
    import traceback

    for line in traceback.format_exc().splitlines():
        syslog.syslog(syslog.LOG_ERR, line)


def _let_go_of_all_but(kept: Collection[int]) -> None:
    """Close what was inherited: a caller that reads snapvm's output waits for its last holder."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor in kept:
            continue
        with suppress(OSError):  # the one the folder was read by
            if descriptor > 2:
                os.close(descriptor)
            else:
                os.dup2(null, descriptor)
