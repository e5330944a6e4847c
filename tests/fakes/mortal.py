"""A snapvm that is killed: it works on the fakes in a child process and leaves them as they were.

Nothing that stands in a ``finally`` runs then, as with SIGKILL.  Files are real; what the fakes
hold in memory comes back through a pipe.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from snapvm import crashpoint
from snapvm.errors import Interrupted, SnapvmError
from snapvm.interrupt import watched
from tests.fakes.scene import Scene

Command = Callable[[Scene], object]
ALARM_SECONDS = 30


def points_of(scene: Scene, command: Command) -> list[str]:
    """Let a command live to its end, and return every crash point it passes, in order."""
    passed: list[str] = []

    def work(report: Callable[[object], None]) -> None:
        _watch(passed.append)
        command(scene)
        report(passed)

    return list(in_child(work))


def kill_at(scene: Scene, command: Command, point: str | int) -> bool:
    """Kill a command at a point, or at the n-th; the scene is what it left.

    False when it never came there.  A command that fails in one of our ways before it comes there
    has ended like any other.
    """
    passed = 0

    def work(scene: Scene, die: Callable[[], None]) -> None:
        def die_there(name: str) -> None:
            nonlocal passed
            passed += 1
            if point in (name, passed):
                die()

        _watch(die_there)
        command(scene)

    return kill(scene, work)


def kill(scene: Scene, command: Callable[[Scene, Callable[[], None]], object]) -> bool:
    """Have a command die where it calls what it is handed; see ``kill_at``."""

    def work(report: Callable[[object], None]) -> None:
        def die() -> None:
            report((True, state_of(scene)))
            os._exit(0)

        with suppress(SnapvmError):
            command(scene, die)
        report((False, state_of(scene)))

    was_killed, state = in_child(work)
    become(scene, state)
    return bool(was_killed)


def interrupt_at(scene: Scene, command: Command, point: str) -> str:
    """Interrupt a command at a point, as Ctrl-C does; return how it ended, the scene as it left it.

    That is ``"done"``, ``"interrupted"``, or another failure in words.
    """

    def work(report: Callable[[object], None]) -> None:
        def interrupt(name: str) -> None:
            if name == point:
                os.kill(os.getpid(), signal.SIGINT)

        _watch(interrupt)
        how = "done"
        try:
            with watched():
                command(scene)
        except Interrupted:
            how = "interrupted"
        except SnapvmError as error:
            how = f"{type(error).__name__}: {error}"
        report((how, state_of(scene)))

    how, state = in_child(work)
    become(scene, state)
    return str(how)


_LVM = ("volumes", "_made")
_HYPERVISOR = ("machines", "forgotten", "set_for_capture", "_runs")


def state_of(scene: Scene) -> tuple[dict[str, Any], ...]:
    """Return what the fakes hold; at once, since a domain holds the very volumes that LVM has."""
    owners = ((scene.lvm, _LVM), (scene.hypervisor, _HYPERVISOR))
    return tuple({name: getattr(owner, name) for name in names} for owner, names in owners)


def become(scene: Scene, state: tuple[dict[str, Any], ...]) -> None:
    for owner, held in zip((scene.lvm, scene.hypervisor), state, strict=True):
        for name, value in held.items():
            setattr(owner, name, value)


def _watch(seen: Callable[[str], None]) -> None:
    """Have every crash point told to ``seen``; only ever in a child."""
    crashpoint._wanted = crashpoint.LIST
    crashpoint._passed.clear()
    setattr(crashpoint, "_pass", seen)  # noqa: B010 - a function of the module is replaced


def in_child(work: Callable[[Callable[[object], None]], None]) -> Any:
    """Run ``work`` in a child, which reports one value; return that."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(ALARM_SECONDS)
        os.close(reader)

        def report(value: object) -> None:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(pickle.dumps(value))

        try:
            work(report)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    is_hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
    assert told, "the child told nothing: " + ("it hung" if is_hung else "it failed, as told above")
    return pickle.loads(told)
