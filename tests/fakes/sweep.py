"""What is done to a scene time after time, with another mishap each; and what is wrong then."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from snapvm import checking, consistency, hostid, retry, rollbackrepair
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.failures import DeleteStopped
from snapvm.model import DomainState, SideKind, SidePlace, Silent
from tests.fakes import meanwhile, verbs
from tests.fakes.mishaps import attempt
from tests.fakes.mortal import Command, kill_at
from tests.fakes.picture import Picture, disks
from tests.fakes.scene import DOMAIN, Scene, make_scene

KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}
Deed = Callable[[Scene], object]
Way = TypeVar("Way")
EXTENTS = pytest.mark.parametrize(
    ("kinds", "most"), [(1, 4), pytest.param(3, 1 << 20, marks=pytest.mark.long)]
)
"""Of how many kinds of disks, and of how many ways at most: a sample, and all."""


def drawn(
    case: str, kinds: int, most: int, ways: Callable[[str], Iterable[Way]]
) -> Iterator[tuple[str, Way]]:
    """Yield kinds of disks, each with some of the ways that there are for it; always the same."""
    dice = random.Random(case)
    for kind in dice.sample(list(KINDS), kinds):
        every = list(ways(kind))
        for way in dice.sample(every, min(most, len(every))):
            yield kind, way


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait: neither for a disk, nor until something may have changed."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(hostid, "BOOT_PATH", hostid.BOOT_PATH)  # `begun` sets another
    monkeypatch.setattr(retry, "_SOON_SECONDS", 0.0)
    monkeypatch.setattr(rollbackrepair, "_START_SECONDS", 0.0)
    monkeypatch.setattr(rollbackrepair, "_END_SECONDS", 0.0)


def killed(command: Command, point: str) -> Deed:
    return lambda scene: kill_at(scene, command, point)


def check(scene: Scene) -> object:
    return checking.look(scene.host, None, Silent(), deep=True)


CASES: dict[str, tuple[Deed, Command]] = {
    "take": (meanwhile.nothing, verbs.take),
    "take --disk-only": (meanwhile.nothing, verbs.take_disks),
    "take --stop": (meanwhile.nothing, verbs.take_and_stop),
    "rollback": (meanwhile.nothing, verbs.roll_back),
    "undo": (verbs.roll_back, verbs.undo),
    "delete": (meanwhile.nothing, verbs.delete),
    "doctor": (meanwhile.nothing, verbs.doctor),
    "check": (meanwhile.nothing, check),
    "catalog rebuild": (meanwhile.nothing, verbs.rebuild_damaged),
    "repair of a take": (killed(verbs.take, "before commit 1"), verbs.repair),
    "repair of a stop": (killed(verbs.take_and_stop, "before stop 1"), verbs.repair),
    "repair of a delete": (killed(verbs.delete, "after hide 1"), verbs.repair),
    "repair at its pause": (killed(verbs.roll_back, "after suspend 1"), verbs.repair),
    "repair at its end": (killed(verbs.roll_back, "after stop 1"), verbs.repair),
    "repair of a start": (killed(verbs.roll_back, "after restore 1"), verbs.repair),
}
"""What is done first, and the command that meets the mishap."""


def begun(folder: Path, kind: str, case: str) -> Scene:
    """Make a scene on which the command of a case can be given."""
    folder.mkdir()
    scene = make_scene(folder, thick=KINDS[kind])
    hostid.BOOT_PATH = meanwhile.first_boot(scene)
    variables = SidePlace(kind=SideKind.NVRAM, path=folder / "demo_VARS.fd")
    scene.machine.places = (variables,)
    scene.count(5)
    consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=verbs.KEPT), Silent())
    scene.count(3)
    CASES[case][0](scene)
    return scene


def claimed_wrongly(
    failed: SnapvmError, before: Picture, after: Picture, command: Command
) -> Iterator[str]:
    """Yield what a failure says that is not so."""
    is_partial = isinstance(failed, DeleteStopped) or command is verbs.rebuild_damaged or before[2]
    if failed.exit_status <= ExitStatus.FAILED and not is_partial and before != after:
        yield f"all was put back, it says ({failed}): {before} became {after}"


def mended_wrongly(scene: Scene, case: str, failed: SnapvmError | None) -> Iterator[str]:
    """Repair what a command has left when nothing befalls that; yield what is wrong then."""
    after = attempt(scene, verbs.repair)
    if after is not None and after.exit_status is not ExitStatus.ATTENTION:
        yield f"the repair failed: {after}"
    verbs.rebuild(scene)
    was_told = any(e is not None and e.exit_status is ExitStatus.ATTENTION for e in (failed, after))
    yield from left_wrong(scene, may_be_off=was_told or "stop" in case)


def left_wrong(scene: Scene, *, may_be_off: bool) -> Iterator[str]:
    """Yield what is not in order after a repair; the guest writes once more."""
    for each in checking.look(scene.host, None, Silent(), deep=True):
        yield f"check: {each.subject}: {each.problem}"
    state = scene.hypervisor.state_of(DOMAIN)
    if state is DomainState.PAUSED or (state is DomainState.SHUTOFF and not may_be_off):
        yield f"the domain is {state}"
    if state is DomainState.RUNNING:
        if scene.machine.frozen:
            yield "its file systems are frozen"
        scene.machine.frozen = False
        scene.count(1)
        if set(disks(scene)) != {str(scene.machine.count)}:
            yield f"memory {scene.machine.count}, disks {disks(scene)}"
