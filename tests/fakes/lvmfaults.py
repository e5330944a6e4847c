"""An lvm that fails: the n-th command of snapvm ends in one of the ways in which an lvm can end.

Those that a waiting lvm is told are counted too, and what is asked of the kernel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.process import Completed
from tests.fakes.lvmwords import parse
from tests.fakes.scene import Scene

Argv = tuple[str, ...]
Do = Callable[[Argv], Completed]

WHY = "because the test says so"
_TOLD = "--quiet"
"""What only a waiting lvm is told."""
_LOOKS = ("lvs", "vgs", "lvmconfig", "version", "status", "target-version")


class Way(Enum):
    """How a command ends."""

    REFUSED = "it fails, with nothing done"
    DONE = "it fails, with all done"
    HALF = "it fails, done to the first of several volumes"
    KILLED = "it is killed when all is done"
    SILENT = "it does nothing, and does not end"
    DEAF = "it does all, and does not end"
    LATE = "it does all when nobody waits for it any more"


class Lasting(Enum):
    """Which of those behind it end like it."""

    NONE = "none"
    ALL = "all"
    CHANGES = "all that change something"
    GROUP = "all that change something in vg0, as when it lacks a PV"
    GROWTH = "all that need metadata, as when its area is full"
    REMOVALS = "all that remove something"

    def holds_for(self, argv: Argv) -> bool:
        is_change = argv[1] not in _LOOKS
        match self:
            case Lasting.NONE:
                return False
            case Lasting.ALL:
                return True
            case Lasting.CHANGES:
                return is_change
            case Lasting.GROUP:
                return is_change and any(word.partition("/")[0] == "vg0" for word in argv)
            case Lasting.GROWTH:
                return argv[1] in ("lvcreate", "lvconvert") or "--addtag" in argv
            case Lasting.REMOVALS:
                return argv[1] == "lvremove"


Befall = Callable[[Scene], None]


def _pool(**told: Any) -> Befall:
    def befall(scene: Scene) -> None:
        for name, value in told.items():
            setattr(scene.lvm.named("vg0", "pool"), name, value)

    return befall


def _full(scene: Scene) -> None:
    scene.lvm.has_no_room = True


def _busy(scene: Scene) -> None:
    scene.lvm.busy_seconds = 500.0


def _away(vg: str) -> Befall:
    return lambda scene: scene.lvm.away.update({vg: {}})


def mend(scene: Scene) -> None:
    """End what has befallen the storage."""
    _pool(health="", data_percent=10.0, metadata_percent=10.0)(scene)
    scene.lvm.has_no_room, scene.lvm.busy_seconds = False, 0.0
    scene.lvm.away.clear()


EVENTS: dict[str, Befall] = {
    "the pool is out of data space": _pool(health="out_of_data", data_percent=100.0),
    "the pool's metadata is read-only": _pool(health="metadata_read_only"),
    "the pool's metadata is full": _pool(metadata_percent=99.9),
    "the pool has failed": _pool(health="failed"),
    "/etc/lvm is full": _full,
    "vg0 is away": _away("vg0"),
    "vg1 is away": _away("vg1"),
    "somebody has the groups' locks": _busy,
}
"""What befalls the storage while a command of snapvm works, and lasts."""


def ways_of(argv: Argv) -> Iterator[tuple[Way, Lasting]]:
    """Yield the ways in which a command can end; to one that looks nothing is done."""
    ways = (Way.REFUSED, Way.SILENT) if argv[1] in _LOOKS else tuple(Way)
    for way in ways:
        for lasting in (Lasting.NONE,) if way in (Way.HALF, Way.KILLED) else Lasting:
            yield way, lasting


@dataclass
class LvmFaults:
    """What was seen of commands, and which have failed."""

    seen: list[Argv] = field(default_factory=list)
    struck: list[Argv] = field(default_factory=list)
    late: list[Argv] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, argv: Argv) -> int:
        with self.lock:
            self.seen.append(argv)
            return len(self.seen)


@contextmanager
def befalling_at(scene: Scene, number: int, befall: Befall) -> Iterator[LvmFaults]:
    """Let something befall the storage before the n-th command."""
    faults = LvmFaults()

    def before(argv: Argv, do: Do) -> Completed:
        if faults.count(argv) == number:
            befall(scene)
            faults.struck.append(argv)
        return do(argv)

    with _passing(scene, before):
        yield faults


@contextmanager
def lvm_failing_at(
    scene: Scene, number: int, way: Way = Way.REFUSED, lasting: Lasting = Lasting.NONE
) -> Iterator[LvmFaults]:
    """Let the n-th command end in a way, and some of those behind it."""
    faults = LvmFaults()

    def strike(argv: Argv, do: Do) -> Completed:
        count = faults.count(argv)
        if count != number and not (count > number > 0 and lasting.holds_for(argv)):
            return do(argv)
        faults.struck.append(argv)
        match way:
            case Way.DONE | Way.KILLED | Way.DEAF:
                do(argv)
            case Way.HALF:
                do(_first_of(argv))
            case Way.LATE if argv[1] not in _LOOKS:
                faults.late.append(argv)
        if way in (Way.SILENT, Way.DEAF, Way.LATE):
            if _TOLD in argv:
                scene.lvm.hanging = []
            raise CommandTimedOut(argv=argv, seconds=300)
        raise CommandFailed(argv=argv, status=-9 if way is Way.KILLED else 5, stderr=WHY)

    with _passing(scene, strike):
        yield faults
    for argv in faults.late:
        with suppress(CommandFailed):
            scene.lvm.obey(argv)


def _first_of(argv: Argv) -> Argv:
    """Return a command on the first of its volumes alone."""
    _, operands = parse(list(argv[2:]))
    is_of_several = argv[1] == "lvchange" and len(operands) > 1
    return argv[: 1 - len(operands)] if is_of_several else argv


@contextmanager
def _passing(scene: Scene, through: Callable[[Argv, Do], Completed]) -> Iterator[None]:
    """Have every command pass through a function; the next snapvm knows of none that goes on."""
    lvm = scene.lvm
    obey, run = lvm.obey, lvm.run

    def running(argv: Sequence[str], **limits: Any) -> Completed:
        if argv[0] == "lvm":  # it comes to ``obey``
            return run(argv, **limits)
        return through(tuple(argv), lambda asked: run(asked, **limits))

    lvm.__dict__["obey"] = lambda argv: through(tuple(argv), obey)
    lvm.__dict__["run"] = running
    try:
        yield
    finally:
        del lvm.__dict__["obey"], lvm.__dict__["run"]
        lvm.hanging = None
        scene.host.lvm._given_up.clear()
        scene.host.lvm._late.clear()
