"""Other programs: the only importer of ``sh``, and the one way in which snapvm runs anything.

Every program gets an argument vector (never a shell), a small environment made here, no standard
input unless one is given, and a session of its own: what ends a terminal's job, or a unit of
systemd's, reaches snapvm alone.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any, Protocol

import sh

from snapvm import crashpoint
from snapvm.errors import Interrupted
from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.interrupt import shielded, undisturbed
from snapvm.refusals import HostLacks

log = logging.getLogger(__name__)

REMEMBERED = 16
"""How many of the last commands the flight recorder keeps."""

_RECORDED_CHARACTERS = 200
"""How much of what a program said on its standard error it keeps."""

GOODBYE_SECONDS = 10.0
"""How long a program may take to end when its input is closed."""

_URGENT_NICENESS = -10

_QUESTIONS = {"lvm lvs", "dmsetup status", "dmsetup target-version", "xl list", "xl info"}
"""Commands that change nothing: whether snapvm dies before or after them makes no difference."""
_ANY_STATUS = list(range(-64, 256))
"""For sh, which would raise an error of its own for a status that is not listed as a good one."""
_KEPT = ("LVM_SYSTEM_DIR", "DM_DEV_DIR", "DM_DISABLE_UDEV")
"""Variables that say where LVM's files are, and that it must not wait for udev: in a container that
of the host does not see the semaphore by which it would answer (lvm2, libdm-common.c)."""
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A program that has ended: what was run, how it ended and what it said."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float


class Conversation(Protocol):
    """A program that is running already and takes orders, a line each."""

    def ask(
        self, line: str, ends: Callable[[str], bool], *, limit_seconds: float
    ) -> tuple[str, ...]:
        """Give it a line and return the lines it answers, up to the one that ``ends`` accepts.

        Raises ``CommandTimedOut`` when that line does not come in time, and leaves the program
        alone; ``CommandFailed`` when the program ends before.
        """

    def listen(self, ends: Callable[[str], bool], *, limit_seconds: float) -> tuple[str, ...]:
        """Return what it goes on to say without a new order; otherwise as ``ask``."""

    def ended(self, limit_seconds: float) -> bool:
        """Tell whether the program has ended, waiting that long for it."""


class Runner(Protocol):
    """The seam to the outside world: runs a program and returns what it did."""

    def converse(self, argv: Sequence[str]) -> AbstractContextManager[Conversation]:
        """Start a program that is given its orders later, and end it by closing its input.

        What it says on both outputs is one stream of lines.  It has priority over other programs,
        if we may give it that: a domain stands still while it works.
        """

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float = 120.0, kill: bool = True
    ) -> Completed:
        """Run ``argv`` to its end.

        A program that does not end in time, or is interrupted, is killed.  Without ``kill`` it is
        left alone, since an lvm must never be killed in its critical section.  An interruption is
        then raised when the program has ended, so that its work is undone after it; if it does not
        end soon, ``CommandTimedOut`` is raised, in which the signal is noted.

        Raises ``CommandFailed`` for any status but 0, ``CommandTimedOut``, and ``HostLacks``
        when there is no such program, no room for it, or the kernel does not run it.
        """


def _start(argv: Sequence[str], environment: dict[str, str], **streams: Any) -> Any:
    """Start a program in the background; raise ``HostLacks`` when it cannot be started."""
    try:
        program = sh.Command(argv[0], search_paths=environment["PATH"].split(":"))
    except sh.CommandNotFound:
        remedy = f"install the package that has {argv[0]}"
        raise HostLacks(what=f"the program {argv[0]}", remedy=remedy) from None
    try:
        return program(
            *argv[1:],
            _bg=True,
            _bg_exc=False,
            _return_cmd=True,
            _env=environment,
            _new_session=True,
            _preexec_fn=_outlive_us,
            _tty_out=False,
            _ok_code=_ANY_STATUS,
            _truncate_exc=False,
            _decode_errors="replace",
            **streams,
        )
    except (OSError, RuntimeError, sh.ForkException) as error:
        raise _not_started(argv[0], str(program), error) from error


def _not_started(name: str, path: str, error: Exception) -> HostLacks:
    """Return what the host lacks where sh could not start a program that there is."""
    again = "try again when it has"
    if isinstance(error, OSError):  # of memory, or of a unit's tasks (systemd.resource-control(5))
        return HostLacks(what=f"room for {name} to run in ({error.strerror})", remedy=again)
    if isinstance(error, RuntimeError):  # of `threading`: sh listens to a program in threads
        return HostLacks(what=f"room for one more thread, for {name} ({error})", remedy=again)
    # A process that could not become the program: its traceback ends with what the kernel said.
    said = str(error).strip().splitlines()[-1]
    why = said.partition("] ")[2].partition(": ")[0] or said.strip()
    denied = "SELinux, AppArmor or a mount with noexec may deny it"
    return HostLacks(what=f"a working {name} ({path}: {why})", remedy=f"repair it; {denied}")


def _outlive_us() -> None:
    """In the child: ignore the signals of a pipe without a reader, and those meant for snapvm.

    sh gives SIGPIPE its default action back.  An ``xl restore`` has died of that halfway, and an
    lvm would die with volumes suspended.  systemd sends SIGTERM, and SIGHUP where it is told to, to
    every process of a unit that it stops (systemd.kill(5)).  snapvm puts those off, or undoes its
    work; the programs that it needs for this must not die of them.  snapvm itself ends a program
    only by SIGKILL.

    An xl that stays behind with its domain goes on ignoring them.  Its QEMU does not, which libxl
    ends by SIGHUP (QEMU, os-posix.c, os_setup_signal_handling).
    """
    for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _ShConversation:
    """See ``Conversation``: sh's threads carry lines in and out of two queues."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self._argv = argv
        self._asked = argv
        self._status = 0
        self.orders: Queue[str | None] = Queue()
        self._heard: Queue[str | None] = Queue()
        self.said: deque[str] = deque(maxlen=REMEMBERED)
        self._ended = threading.Event()

    def hear(self, line: str) -> None:
        """Take a line the program said."""
        self.said.append(line.rstrip())
        self._heard.put(line.rstrip())

    def end(self, _running: Any, _success: bool, status: int) -> None:
        """Learn that the program has ended."""
        self._status = status
        self._heard.put(None)
        self._ended.set()

    def ended(self, limit_seconds: float) -> bool:
        """See ``Conversation.ended``."""
        return self._ended.wait(limit_seconds)

    def ask(
        self, line: str, ends: Callable[[str], bool], *, limit_seconds: float
    ) -> tuple[str, ...]:
        """See ``Conversation.ask``."""
        self._asked = (*self._argv, *line.split())
        self.said.append(f"> {line}")
        self.orders.put(line + "\n")
        return self.listen(ends, limit_seconds=limit_seconds)

    def listen(self, ends: Callable[[str], bool], *, limit_seconds: float) -> tuple[str, ...]:
        """See ``Conversation.listen``."""
        deadline = time.monotonic() + limit_seconds
        answer: list[str] = []
        while not answer or not ends(answer[-1]):
            try:
                heard = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise CommandTimedOut(argv=self._asked, seconds=limit_seconds) from None
            if heard is None:
                self._heard.put(None)
                raise CommandFailed(argv=self._asked, status=self._status, stderr="\n".join(answer))
            answer.append(heard)
        return tuple(answer)


def _wait(running: Any, limit_seconds: float) -> bool:
    """Wait for a program and all it said; tell whether it ended in time.

    ``wait(timeout=…)`` of sh (2.2 to 2.4) polls every 100 ms, and does not wait for the threads
    that collect the output, so that output may be missing.  ``wait()`` does both right but has no
    limit, so it is called in a thread.
    """

    def wait() -> None:
        with suppress(sh.ErrorReturnCode):  # one that we killed ourselves
            running.wait()

    waiter = threading.Thread(target=wait, name=f"wait-{running.pid}", daemon=True)
    waiter.start()
    waiter.join(limit_seconds)
    return not waiter.is_alive()


def _outlast(running: Any, argv: Sequence[str], interruption: Interrupted) -> None:
    """Give an interrupted program the time to end; raise ``CommandTimedOut`` when it does not."""
    with undisturbed():
        if not _wait(running, GOODBYE_SECONDS):
            failure = CommandTimedOut(argv=tuple(argv), seconds=GOODBYE_SECONDS)
            failure.signal_put_off = interruption.signal
            raise failure from interruption


def clean_environment() -> dict[str, str]:
    """Return the environment of every child: messages in English, only what programs need.

    The caller's PATH is kept, with the system folders behind it: a plain ``su`` on Debian lacks
    the sbin ones.  LVM's own variables are dropped, except those that tell what this host is like
    (lvm(8), ENVIRONMENT VARIABLES).  HOME is where nothing can be written: an lvm that takes orders
    writes a history after each command, and without HOME it writes it into the present folder,
    through whatever link is there (lvm2, tools/lvm.c, _hist_file).
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = os.environ.get("PATH", "")
    return {
        "HOME": "/dev/null",
        "LC_ALL": "C",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        "PATH": f"{path}:{_SYSTEM_PATH}" if path else _SYSTEM_PATH,
        **kept,
    }


class ShRunner:
    """The real ``Runner``, on ``sh``; remembers the last commands for a failure report."""

    def __init__(self) -> None:
        self.recorder: deque[str] = deque(maxlen=REMEMBERED)

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float = 120.0, kill: bool = True
    ) -> Completed:
        """See ``Runner.run``."""
        command = " ".join(argv[:2])
        if command in _QUESTIONS:
            return self._run(argv, timeout_seconds, kill=kill)
        with crashpoint.around(command):
            return self._run(argv, timeout_seconds, kill=kill)

    def _run(self, argv: Sequence[str], timeout_seconds: float, *, kill: bool) -> Completed:
        begun = time.monotonic()
        environment = clean_environment()
        running: Any = None
        try:
            with shielded():
                running = _start(argv, environment, _out_bufsize=65536)
            if not _wait(running, timeout_seconds):
                raise CommandTimedOut(argv=tuple(argv), seconds=timeout_seconds)
        except BaseException as error:
            if running is None:
                raise
            if kill:
                with suppress(ProcessLookupError):  # it ended just now
                    running.kill_group()
            elif isinstance(error, Interrupted):
                _outlast(running, argv, error)
            self._remember(argv, f"no end ({type(error).__name__})", time.monotonic() - begun)
            raise
        done = Completed(
            argv=tuple(argv),
            status=int(running.exit_code),
            stdout=running.stdout.decode(errors="replace"),
            stderr=running.stderr.decode(errors="replace"),
            seconds=time.monotonic() - begun,
        )
        self._remember(argv, str(done.status), done.seconds, done.stderr)
        if done.status != 0:
            raise CommandFailed(
                argv=done.argv, status=done.status, stderr=done.stderr, stdout=done.stdout
            )
        return done

    @contextmanager
    def converse(self, argv: Sequence[str]) -> Iterator[Conversation]:
        """See ``Runner.converse``; a program that does not end by itself is left alone."""
        talk = _ShConversation(tuple(argv))
        running: Any = None
        try:
            with shielded():
                running = _start(
                    argv,
                    clean_environment(),
                    _in=talk.orders,
                    _out=talk.hear,
                    _err_to_out=True,
                    _out_bufsize=1,
                    _done=talk.end,
                )
            with suppress(OSError):  # not permitted, or the program has ended: ``ask`` will tell
                os.setpriority(os.PRIO_PROCESS, running.pid, _URGENT_NICENESS)
            yield talk
        finally:
            talk.orders.put(None)
            if running is not None and _wait(running, GOODBYE_SECONDS):
                talk.end(running, running.exit_code == 0, int(running.exit_code))
            said = tuple(talk.said)  # one that is left alone may go on talking
            self.recorder.extend(said)
            for line in said:
                log.debug("%s: %s", argv[0], line)

    def _remember(self, argv: Sequence[str], end: str, seconds: float, stderr: str = "") -> None:
        line = f"{shlex.join(argv)} -> {end} in {seconds:.3f} s"
        log.debug("%s", line)
        said = " ".join(stderr.split())
        self.recorder.append(f"{line}: {said[:_RECORDED_CHARACTERS]}" if said else line)
