"""What unit tests do to a scene, and have fail in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm import consistency, diagnosis, remaking, repair
from snapvm.attention import LeftBehind
from snapvm.consistency import TakeRequest
from snapvm.failures import CaptureFailed, CommandFailed, CommandTimedOut
from snapvm.model import DomainState, Record, Silent
from snapvm.rebuilding import Rebuilt
from snapvm.recordfolder import Work
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene


def take(scene: Scene, name: str | None = None) -> Record:
    return consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=name), Silent())


def roll_back(scene: Scene, record: Record, *, paused: bool = False) -> consistency.RollbackDone:
    return consistency.rollback(scene.host, record, paused=paused, progress=Silent())


def delete(scene: Scene, record: Record) -> None:
    consistency.delete(scene.host, [record], Silent())


def mend(scene: Scene) -> None:
    """Finish or take back what a dead snapvm has left, as the next command does."""
    repair.finish_pending(scene.host, UUID, DOMAIN)


def journal(scene: Scene, work: Work) -> dict[str, Any]:
    """Return what the journal of a work says that never ended."""
    (said,) = (left.intent for left in scene.host.catalog.leftovers(UUID) if left.work is work)
    return said


def make_anew(scene: Scene, rebuilt: Rebuilt) -> str:
    """Write a record that can be made anew; return why it was not."""
    _, hopeless = remaking.put_all(scene.host, [rebuilt])
    return "; ".join(lost.why for lost in hopeless)


def with_settings(scene: Scene, **changes: object) -> Scene:
    settings = replace(scene.host.settings, **changes)  # type: ignore[arg-type]
    return replace(scene, host=replace(scene.host, settings=settings))


def advice(scene: Scene) -> tuple[str, ...]:
    """Return what ``doctor`` advises."""
    return diagnosis.advice(diagnosis.look(scene.host, DOMAIN), scene.host.settings)


def use(scene: Scene) -> str:
    """Have the domain run on, or start it, by its owner; return what its disks hold when it is off.

    It runs for two steps.
    """
    state = scene.hypervisor.state_of(DOMAIN)
    if state is DomainState.PAUSED:
        scene.hypervisor.resume(scene.machine.domain)
    elif state is DomainState.SHUTOFF:
        scene.hypervisor.start(scene.machine.domain, paused=False)
    scene.count(2)
    scene.hypervisor.stop(scene.machine.domain)
    return str(scene.machine.count)


REFUSAL = CaptureFailed(domain=DOMAIN, why="a test wants it")


def fail_deed(scene: Scene, failing: str, error: BaseException | None = None) -> None:
    """Make a deed of the hypervisor fail, with ``REFUSAL`` if no other error is given."""

    def before(deed: str) -> None:
        if deed == failing:
            raise error or replace(REFUSAL)  # each failure gets hints of its own

    scene.hypervisor.before = before


def fail_command(scene: Scene, number: int, *, after: bool) -> Callable[[], int]:
    """Make the n-th effect of lvm fail, before or after it happened; return how many there were."""
    seen = 0

    def strike(argv: tuple[str, ...]) -> None:
        nonlocal seen
        if argv[0] != "lvm" or argv[1] == "lvs":
            return
        seen += 1
        if seen == number:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    if after:
        scene.lvm.after = strike
    else:
        scene.lvm.before = strike
    return lambda: seen


def hang(scene: Scene, *verbs: str) -> None:
    """Have these commands of lvm not come back in their time."""

    def before(argv: tuple[str, ...]) -> None:
        if argv[1] in verbs:
            raise CommandTimedOut(argv=argv, seconds=300)

    scene.lvm.before = before


def take_half(scene: Scene, name: str) -> None:
    """Take a snapshot, and be stopped when it has all its volumes, none of which can be removed."""
    hang(scene, "lvremove")
    fail_deed(scene, "drain")
    with pytest.raises(LeftBehind):
        take(scene, name)
    revive(scene)


def revive(scene: Scene) -> None:
    """Let the next snapvm begin, with the domain as the dead one left it."""
    scene.lvm.before = scene.lvm.after = lambda _argv: None
    scene.hypervisor.before = lambda _deed: None
    scene.host.lvm._given_up.clear()


def fail_late(scene: Scene) -> None:
    """Make every effect of lvm on a snapshot fail when it has happened, its removal too."""

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] in ("lvremove", "lvconvert") or "--snapshot" in argv:
            raise CommandFailed(argv=argv, status=5, stderr="because the test says so")

    scene.lvm.after = fail


def take_at_five(scene: Scene, **asked: Any) -> Record:
    """Take a snapshot at five; the domain counts on to eight."""
    scene.count(5)
    request = TakeRequest(domain=DOMAIN, name="x", **asked)
    record = consistency.take(scene.host, request, Silent())
    scene.count(3)
    return record


def begun(folder: Path, *thick: str) -> tuple[Scene, Record]:
    """Make a scene with a snapshot of five, whose domain has counted on to eight."""
    scene = make_scene(folder, thick=thick)
    return scene, take_at_five(scene)


def lose(scene: Scene, record: Record, vg: str) -> FakeVolume:
    """Let the kernel give the thick snapshot of a group up."""
    ref = next(disk.snapshot for disk in record.disks if disk.snapshot.vg == vg)
    volume = scene.lvm.named(ref.vg, ref.lv)
    volume.invalid = True
    return volume


class Down(BaseException):
    """The power is gone: nothing of snapvm runs after it."""


def die(scene: Scene, record: Record, where: str | tuple[str, ...]) -> None:
    """Lose snapvm alone there, or at the first of several places."""
    is_down = False

    def strike(what: str | tuple[str, ...]) -> None:
        nonlocal is_down
        deed = what if isinstance(what, str) else " ".join(w for w in what[1:] if w != "--quiet")
        is_down = is_down or deed.startswith(where)
        if is_down:
            raise Down

    scene.lvm.before = strike
    scene.hypervisor.before = strike
    with pytest.raises(Down):
        consistency.rollback(scene.host, record, paused=False, progress=Silent())
    scene.lvm.before = lambda _argv: None
    scene.hypervisor.before = lambda _deed: None
