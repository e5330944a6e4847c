"""Each command of LVM's fails in each way there is, or LVM's storage fails before it.

snapvm then ends as it should, or says what failed; it never ends as a bug.  What it says of the
domain is true, a repair that nothing befalls completes what it has left, and the next commands do
their work and leave nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from snapvm import consistency
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.model import DomainState, Silent
from tests.fakes import verbs
from tests.fakes.lvmfaults import (
    EVENTS,
    LvmFaults,
    Way,
    befalling_at,
    lvm_failing_at,
    mend,
    ways_of,
)
from tests.fakes.mishaps import attempt
from tests.fakes.mortal import Command
from tests.fakes.picture import Picture, picture
from tests.fakes.scene import DOMAIN, Scene
from tests.fakes.sweep import (
    CASES,
    EXTENTS,
    begun,
    claimed_wrongly,
    drawn,
    hurry,
    mended_wrongly,
)

Mishap = Callable[[Scene], AbstractContextManager[LvmFaults]]
LATE = Way.LATE.value


def mishaps(folder: Path, case: str, kind: str) -> Iterator[tuple[str, Mishap]]:
    """Yield all that can befall the command of a case, and in which words."""
    scene = begun(folder, kind, case)
    with lvm_failing_at(scene, 0) as faults:
        CASES[case][1](scene)
    shutil.rmtree(folder)
    for number, argv in enumerate(faults.seen, 1):
        for way, lasting in ways_of(argv):
            told = f"{number}, {way.value}, then {lasting.value}"
            yield told, partial(lvm_failing_at, number=number, way=way, lasting=lasting)
        for event, befall in EVENTS.items():
            yield f"{number}, {event}", partial(befalling_at, number=number, befall=befall)


def wrong_of(folder: Path, case: str, kind: str, told: str, mishap: Mishap) -> list[str]:
    """Let a command meet a mishap; return what is wrong then, after a repair, and later."""
    scene, command = begun(folder, kind, case), CASES[case][1]
    before = picture(scene)
    failed, wrong = None, []
    with mishap(scene) as faults:
        try:
            failed = attempt(scene, command)
        except Exception as bug:
            wrong.append(f"a bug: {bug!r}")
    if failed is not None:
        wrong += stands_wrongly(scene, case, failed, before)
        if LATE not in told:
            wrong += claimed_wrongly(failed, before, picture(scene), command)
    mend(scene)
    wrong += mended_wrongly(scene, case, failed)
    if "stop" not in case:
        wrong += goes_on_wrongly(scene)
    shutil.rmtree(folder)
    where = " ".join(faults.struck[0][:2]) if faults.struck else ""
    return [f"{case}, {kind}, {where} {told}: {each}" for each in wrong]


def stands_wrongly(scene: Scene, case: str, failed: SnapvmError, before: Picture) -> Iterator[str]:
    state = scene.hypervisor.state_of(DOMAIN)
    is_told = failed.exit_status is ExitStatus.ATTENTION or "stop" in case
    if DomainState.RUNNING in before and state is not DomainState.RUNNING and not is_told:
        yield f"it is {state}, and this is said: {failed}"


def goes_on_wrongly(scene: Scene) -> Iterator[str]:
    """Give the commands that a user gives next, up to a delete of all there is."""

    def take_another(scene: Scene) -> object:
        return consistency.take(scene.host, TakeRequest(domain=DOMAIN, name="next"), Silent())

    orders: dict[str, Command] = {"take": take_another, "delete": verbs.delete}
    if verbs.KEPT in scene.ids():
        orders = {"take": take_another, "rollback": verbs.roll_back, "delete": verbs.delete}
    for name, order in orders.items():
        failed = attempt(scene, order)
        if failed is not None:
            yield f"the next {name}: {failed}"
    left = scene.lvm.names() - {"vg0/pool", "vg0/demo-d0", "vg1/pool", "vg1/demo-d1"}
    if left:
        yield f"left when all is deleted: {sorted(left)}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@EXTENTS
@pytest.mark.parametrize("case", CASES)
def test_a_command_of_lvms_that_fails(tmp_path: Path, case: str, kinds: int, most: int) -> None:
    wrong: list[str] = []
    of_kind = partial(mishaps, tmp_path / "whole", case)
    for kind, (told, mishap) in drawn(case, kinds, most, of_kind):
        wrong += wrong_of(tmp_path / "one", case, kind, told, mishap)
    assert not wrong, "\n".join(wrong)
