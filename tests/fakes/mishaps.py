"""What may befall a command: it dies, or its disk, LVM or hypervisor fails it, once or for good."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from snapvm.errors import SnapvmError
from snapvm.failures import CommandFailed, CommandTimedOut, DomainFailed
from snapvm.process import Completed
from tests.fakes.mortal import Command, kill_at
from tests.fakes.scene import DOMAIN, Scene
from tests.fakes.storage import failing

WHY = "because the test says so"
_LOOKS = ("lvs", "vgs", "lvmconfig")


def attempt(scene: Scene, command: Command) -> SnapvmError | None:
    """Return how a command failed, if it did."""
    try:
        command(scene)
    except SnapvmError as error:
        return error
    return None


def befall(scene: Scene, command: Command, dice: random.Random) -> tuple[str, SnapvmError | None]:
    """Let a command meet a mishap; return in words which, and how it failed unless it died."""
    if dice.random() < 0.4:
        number = dice.randint(1, 40)
        return (f"dies at {number}" if kill_at(scene, command, number) else "lives"), None
    mishap = dice.choice((_disk, _lvm, _late_lvm, _deed))
    with mishap(scene, dice) as told:
        failed = attempt(scene, command)
    return told, failed


@contextmanager
def _disk(scene: Scene, dice: random.Random) -> Iterator[str]:
    number, lasts = dice.randint(1, 20), dice.choice((False, True))
    error = dice.choice((errno.ENOSPC, errno.EIO, errno.EROFS))
    with failing(scene.host.settings.state_dir, number, error, lasts=lasts):
        yield f"{errno.errorcode[error]} at {number}{' and after' * lasts}"


@contextmanager
def _lvm(scene: Scene, dice: random.Random) -> Iterator[str]:
    number, lasts, when = dice.randint(1, 14), dice.choice((False, True)), dice.choice("ba")
    is_due = _counting(number, lasts=lasts)

    def strike(argv: tuple[str, ...]) -> None:
        if is_due():
            raise CommandFailed(argv=argv, status=5, stderr=WHY)

    name = {"b": "before", "a": "after"}[when]
    setattr(scene.lvm, name, strike)
    yield f"lvm fails {name} {number}{' and after' * lasts}"
    setattr(scene.lvm, name, lambda _argv: None)


@contextmanager
def _late_lvm(scene: Scene, dice: random.Random) -> Iterator[str]:
    """Have an lvm that nobody waits for any more do later what it was told."""
    number, run = dice.randint(1, 14), scene.lvm.run
    is_due = _counting(number, lasts=False)
    late: list[tuple[str, ...]] = []

    def hang(argv: Sequence[str], **limits: Any) -> Completed:
        if argv[0] != "lvm" or argv[1] in _LOOKS or not is_due():
            return run(argv, **limits)
        late.append(tuple(argv))
        raise CommandTimedOut(argv=tuple(argv), seconds=300)

    scene.lvm.__dict__["run"] = hang
    yield f"lvm is late {number}"
    del scene.lvm.__dict__["run"]
    scene.host.lvm._given_up.clear()  # the next command knows nothing of it
    for argv in late:
        with suppress(CommandFailed):
            scene.lvm.obey(argv)


@contextmanager
def _deed(scene: Scene, dice: random.Random) -> Iterator[str]:
    number = dice.randint(1, 14)
    is_due = _counting(number, lasts=False)

    def strike(deed: str) -> None:
        if deed != "ask the agent" and is_due():  # which has failures of its own
            raise DomainFailed(domain=DOMAIN, deed=deed, why=WHY)

    scene.hypervisor.before = strike
    yield f"a deed fails {number}"
    scene.hypervisor.before = lambda _deed: None


def _counting(number: int, *, lasts: bool) -> Callable[[], bool]:
    seen = 0

    def is_due() -> bool:
        nonlocal seen
        seen += 1
        return seen >= number if lasts else seen == number

    return is_due
