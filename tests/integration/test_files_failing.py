"""Each operation on a file fails once, or from then on: looks and reads too, and with every errno.

A command then ends as it should, or says which file failed and why; it never ends as a bug.  What
it says of the domain is true, and a repair that nothing befalls completes what it has left.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapvm import checking, consistency, hostid, rollbackrepair
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.failures import DeleteStopped
from snapvm.model import DomainState, SideKind, SidePlace, Silent
from tests.fakes import meanwhile, verbs
from tests.fakes.faults import ERRORS, Place, failing_at
from tests.fakes.mishaps import attempt
from tests.fakes.mortal import Command, kill_at
from tests.fakes.picture import Picture, disks, picture
from tests.fakes.scene import DOMAIN, Scene, make_scene

KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}
LASTING = (errno.ENOSPC, errno.EROFS, errno.EMFILE)
Deed = Callable[[Scene], object]


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


def begun(folder: Path, kind: str, case: str) -> Scene:
    folder.mkdir()
    scene = make_scene(folder, thick=KINDS[kind])
    hostid.BOOT_PATH = meanwhile.first_boot(scene)
    variables = SidePlace(kind=SideKind.NVRAM, path=folder / "demo_VARS.fd", is_folder=False)
    scene.machine.places = (variables,)
    scene.count(5)
    consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=verbs.KEPT), Silent())
    scene.count(3)
    CASES[case][0](scene)
    return scene


def numbers_of(seen: list[Place]) -> list[int]:
    """Return the first and the last operation of each place in snapvm."""
    by_place: dict[tuple[str, str], list[int]] = {}
    for number, place in enumerate(seen, 1):
        by_place.setdefault((place.name, place.where), []).append(number)
    return sorted({number for its in by_place.values() for number in (its[0], its[-1])})


def ways(folder: Path, case: str, kind: str) -> Iterator[tuple[int, int, bool]]:
    """Yield which operation fails, how, and whether those behind it do too."""
    scene = begun(folder, kind, case)
    with failing_at(0) as faults:
        CASES[case][1](scene)
    shutil.rmtree(folder)
    for number in numbers_of(faults.seen):
        for error in ERRORS[faults.seen[number - 1].name]:
            yield number, error, False
            if error in LASTING:
                yield number, error, True


def wrong_of(folder: Path, case: str, kind: str, way: tuple[int, int, bool]) -> list[str]:
    """Let a command meet a fault; return what is wrong then, and after a repair."""
    number, error, lasts = way
    scene, command = begun(folder, kind, case), CASES[case][1]
    before = picture(scene)
    failed, wrong = None, []
    with failing_at(number, lambda p: error if error in ERRORS[p.name] else 0, lasts=lasts) as seen:
        try:
            failed = attempt(scene, command)
        except Exception as bug:
            wrong.append(f"a bug: {bug!r}")
    if failed is not None:
        wrong += told_wrongly(failed, error)
        wrong += claimed_wrongly(failed, before, picture(scene), command)
    after = attempt(scene, verbs.repair)
    if after is not None and after.exit_status is not ExitStatus.ATTENTION:
        wrong.append(f"the repair failed: {after}")
    verbs.rebuild(scene)
    was_told = any(e is not None and e.exit_status is ExitStatus.ATTENTION for e in (failed, after))
    wrong += left_wrong(scene, may_be_off=was_told or "stop" in case)
    shutil.rmtree(folder)
    where = seen.struck[0] if seen.struck else ""
    return [f"{case}, {kind}, {where}, {errno.errorcode[error]}: {each}" for each in wrong]


def told_wrongly(failed: SnapvmError, error: int) -> Iterator[str]:
    said = failed.message()
    if os.strerror(error) not in said or "/" not in said or not failed.hint():
        yield f"it says: {said}; hint: {failed.hint()}"


def claimed_wrongly(
    failed: SnapvmError, before: Picture, after: Picture, command: Command
) -> Iterator[str]:
    is_partial = isinstance(failed, DeleteStopped) or command is verbs.rebuild_damaged or before[2]
    if failed.exit_status <= ExitStatus.FAILED and not is_partial and before != after:
        yield f"all was put back, it says ({failed}): {before} became {after}"


def left_wrong(scene: Scene, *, may_be_off: bool) -> Iterator[str]:
    for each in checking.look(scene.host, None, Silent(), deep=True):
        yield f"check: {each.subject}: {each.problem}"
    state = scene.hypervisor.state_of(DOMAIN)
    if state is DomainState.PAUSED or (state is DomainState.SHUTOFF and not may_be_off):
        yield f"the domain is {state}"
    if state is DomainState.RUNNING:
        scene.count(1)
        if set(disks(scene)) != {str(scene.machine.count)}:
            yield f"memory {scene.machine.count}, disks {disks(scene)}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(hostid, "BOOT_PATH", hostid.BOOT_PATH)
    monkeypatch.setattr("snapvm.retry._SOON_SECONDS", 0.0)
    monkeypatch.setattr(rollbackrepair, "_START_SECONDS", 0.0)
    monkeypatch.setattr(rollbackrepair, "_END_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("kinds", "most"), [(1, 4), pytest.param(3, 1 << 20, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("case", CASES)
def test_a_file_that_fails(tmp_path: Path, case: str, kinds: int, most: int) -> None:
    wrong: list[str] = []
    dice = random.Random(case)
    for kind in dice.sample(list(KINDS), kinds):
        every = list(ways(tmp_path / "whole", case, kind))
        for way in dice.sample(every, min(most, len(every))):
            wrong += wrong_of(tmp_path / "one", case, kind, way)
    assert not wrong, "\n".join(wrong)
