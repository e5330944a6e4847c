"""A snapvm that is killed: it works on the fakes in a child process and leaves them as they were.

Nothing that stands in a ``finally`` runs then, as with SIGKILL.  Files are real; what the fakes
hold in memory comes back through a pipe.
"""

from __future__ import annotations

import os
import pickle
import signal
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

    return list(_in_child(work))


def kill_at(scene: Scene, command: Command, point: str) -> bool:
    """Kill a command at a point; the scene is what it left.  False when it never came there.

    A command that fails in one of our ways before it comes there has ended like any other.
    """

    def work(report: Callable[[object], None]) -> None:
        def die_there(name: str) -> None:
            if name == point:
                report((True, _state(scene)))
                os._exit(0)

        _watch(die_there)
        with suppress(SnapvmError):
            command(scene)
        report((False, _state(scene)))

    was_killed, state = _in_child(work)
    scene.lvm.volumes, scene.lvm._made, scene.hypervisor.machines = state
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
        report((how, _state(scene)))

    how, state = _in_child(work)
    scene.lvm.volumes, scene.lvm._made, scene.hypervisor.machines = state
    return str(how)


def _state(scene: Scene) -> tuple[Any, ...]:
    return scene.lvm.volumes, scene.lvm._made, scene.hypervisor.machines


def _watch(seen: Callable[[str], None]) -> None:
    """Have every crash point told to ``seen``; only ever in a child."""
    crashpoint._wanted = crashpoint.LIST
    crashpoint._passed.clear()
    setattr(crashpoint, "_pass", seen)  # noqa: B010 - a function of the module is replaced


def _in_child(work: Callable[[Callable[[object], None]], None]) -> Any:
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
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    assert told, "the child told nothing: it failed in a way of its own, or hung"
    return pickle.loads(told)
