"""Every verb killed or interrupted at every point: nothing is lost or left over.

After a death the next command mends it; an interrupted command does so itself.

On the fakes, exhaustively; ``make crash-sweep`` does the same on the real thing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from snapvm import checking, consistency
from snapvm.attention import LeftOff
from snapvm.consistency import TakeRequest
from snapvm.model import DiskRecord, DomainState, RecordKind, SideKind, SidePlace, Silent
from tests.fakes.instants import Instant, instants_of, interrupted_at
from tests.fakes.mortal import Command, become, interrupt_at, kill_at, points_of, state_of
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.fakes.verbs import KEPT, delete, records, repair, take, take_and_stop
from tests.unit.deeds import use

KINDS = {"thin": (), "thick": ("vg0", "vg1"), "mixed": ("vg1",)}
KEPT_AT = 5
"""What memory and disks held when the snapshot was taken that every scene begins with."""
NOW = 8


def take_quiesced(scene: Scene) -> object:
    request = TakeRequest(domain=DOMAIN, name="dying", quiesce=True)
    return consistency.take(scene.host, request, Silent())


def roll_back(scene: Scene) -> object:
    return _go_back(scene, KEPT)


def undo(scene: Scene) -> object:
    """Go back to what a rollback kept; the first one of two when it was killed half-way."""
    return _go_back(scene, next(id_ for id_ in scene.ids() if id_.startswith("undo-")))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead process has written is there for the next one, on the disk or not yet."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


VERBS: dict[str, Command] = {
    "take": take,
    "take --quiesce": take_quiesced,
    "take --stop --quiesce": take_and_stop,
    "rollback": roll_back,
    "undo": undo,
    "delete": delete,
}


def _go_back(scene: Scene, id_: str) -> object:
    record = next(record for record in records(scene) if record.id == id_)
    return consistency.rollback(scene.host, record, paused=False, progress=Silent())


def begun(folder: Path, verb: str, kind: str) -> Scene:
    """A running domain with one snapshot; for ``undo`` it was rolled back once."""
    scene = make_scene(folder, thick=KINDS[kind])
    nvram = SidePlace(kind=SideKind.NVRAM, path=folder / "demo_VARS.fd")
    scene.machine.places = (nvram,)
    folder.mkdir(parents=True, exist_ok=True)
    scene.count(KEPT_AT)
    consistency.take(scene.host, TakeRequest(domain=DOMAIN, name=KEPT, quiesce=True), Silent())
    scene.count(NOW - KEPT_AT)
    if verb == "undo":
        _go_back(scene, KEPT)
        scene.count(1)
    return scene


def problems(scene: Scene) -> Iterator[str]:
    """Yield what is wrong after a death has been mended."""
    for finding in checking.look(scene.host, None, Silent(), deep=True):
        yield f"check: {finding.subject}: {finding.problem}"
    state = scene.hypervisor.state_of(DOMAIN)
    may_be_off = "dying" in scene.ids()
    if state is not DomainState.RUNNING and not (may_be_off and state is DomainState.SHUTOFF):
        yield f"the domain is {state}"
    if state is DomainState.RUNNING:
        if scene.machine.frozen:
            yield "its file systems are frozen"
        nvram = scene.machine.places[0].path.read_text()
        if nvram != str(scene.machine.count):
            yield f"the variables hold {nvram}, memory {scene.machine.count}"
        scene.count(1)
        if scene.disk_data() != [str(scene.machine.count)] * 2:
            yield f"memory {scene.machine.count}, disks {scene.disk_data()}"
    yield from _spoiled_records(scene)
    ours = {f"{v.vg}/{v.name}" for v in scene.lvm.volumes if "snapvm=1" in v.tags}
    known = {f"{d.snapshot.vg}/{d.snapshot.lv}" for r in records(scene) for d in r.disks}
    if ours != known:
        yield f"volumes {ours ^ known}"


def _spoiled_records(scene: Scene) -> Iterator[str]:
    """Yield the records whose disks are not of one instant, or not of theirs."""
    for record in records(scene):
        found = [_data(scene, disk) for disk in record.disks]
        found += [
            scene.host.catalog.path(record, side.file).read_text() for side in record.side_files
        ]
        if not record.side_files:
            yield f"{record.id} has no variables"
        expected = {KEPT: KEPT_AT, "dying": NOW}.get(record.id)
        if len(set(found)) != 1 or (expected is not None and found[0] != str(expected)):
            yield f"{record.id} holds {found}"
        if record.kind is RecordKind.UNDO and found[0] == str(KEPT_AT):
            yield f"{record.id} holds the snapshot and not what was current"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_the_next_command_mends_it(tmp_path: Path, verb: str, kind: str) -> None:
    points = points_of(begun(tmp_path / "living", verb, kind), VERBS[verb])
    assert len(points) > 5, points
    wrong = []
    for number, point in enumerate(points):
        scene = begun(tmp_path / str(number), verb, kind)
        assert kill_at(scene, VERBS[verb], point), f"{point} was not come to"
        repair(scene)
        wrong += [f"{point}: {problem}" for problem in problems(scene)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("deaths", [8, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_its_owner_may_use_it_before_that(tmp_path: Path, kind: str, deaths: int) -> None:
    """He has the domain run after a rollback was killed, and shuts it off; then comes the repair.

    Memory never meets a disk that has changed since, and no disk is lost that he wrote to; but for
    those that were in the middle of being written back.
    """
    points = points_of(begun(tmp_path / "living", "rollback", kind), roll_back)
    half = points.index("after stop 1") if kind == "mixed" else points.index("before stop 1")
    whole = points.index("before stop 1") if kind == "thin" else points.index("before restore 1")
    chosen = random.Random(kind).sample(points, min(deaths, len(points)))
    wrong = []
    for number, point in enumerate(chosen):
        scene = begun(tmp_path / str(number), "rollback", kind)
        assert kill_at(scene, roll_back, point)
        newest = use(scene)
        with suppress(LeftOff):
            repair(scene)
        state, data = scene.hypervisor.state_of(DOMAIN), scene.disk_data()
        if state is DomainState.RUNNING and data != [str(scene.machine.count)] * 2:
            wrong.append(f"{point}: memory {scene.machine.count}, disks {data}")
        kept = [[_data(scene, d) for d in r.disks] for r in records(scene) if r.id != KEPT]
        is_half = half <= points.index(point) < whole
        if not is_half and [newest] * 2 not in (data, *kept):
            wrong.append(f"{point}: {newest} is nowhere, disks {data}")
    assert not wrong, "\n".join(wrong)


def _data(scene: Scene, disk: DiskRecord) -> str:
    return scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv).data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_interrupted_anywhere_it_puts_back_by_itself(tmp_path: Path, verb: str, kind: str) -> None:
    """Ctrl-C at any point: it was done, or everything was put back, and nothing is to be mended."""
    points = points_of(begun(tmp_path / "living", verb, kind), VERBS[verb])
    wrong = []
    for number, point in enumerate(points):
        scene = begun(tmp_path / str(number), verb, kind)
        how = interrupt_at(scene, VERBS[verb], point)
        if how not in ("done", "interrupted"):
            wrong.append(f"{point}: {how}")
        wrong += [f"{point}, {how}: {problem}" for problem in problems(scene)]
    assert not wrong, "\n".join(wrong)


def mendings(folder: Path, verb: str, deaths: int) -> Iterator[tuple[str, str, Scene]]:
    """Yield where a verb died, a point of the repair that follows, and the scene before that."""
    points = points_of(begun(folder / "living", verb, "mixed"), VERBS[verb])
    chosen = random.Random(verb).sample(points, min(deaths, len(points)))
    for number, point in enumerate(chosen):
        dead = begun(folder / f"{number}", verb, "mixed")
        assert kill_at(dead, VERBS[verb], point)
        for again, second in enumerate(points_of(dead, repair)):
            scene = begun(folder / f"{number}-{again}", verb, "mixed")
            kill_at(scene, VERBS[verb], point)
            yield f"{point}, {second}", second, scene


@pytest.mark.parametrize("deaths", [2, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", VERBS)
def test_the_mending_may_be_killed_too(tmp_path: Path, verb: str, deaths: int) -> None:
    """Killed at a point, then the repair at each of its own; the second repair finishes."""
    wrong = []
    for where, point, scene in mendings(tmp_path, verb, deaths):
        kill_at(scene, repair, point)
        repair(scene)
        wrong += [f"{where}: {problem}" for problem in problems(scene)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("deaths", [2, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", VERBS)
def test_the_mending_may_be_interrupted_too(tmp_path: Path, verb: str, deaths: int) -> None:
    """Killed at a point, then Ctrl-C at each of the repair's own, which comes to its end."""
    wrong = []
    for where, point, scene in mendings(tmp_path, verb, deaths):
        how = interrupt_at(scene, repair, point)
        if how not in ("done", "interrupted"):
            wrong.append(f"{where}: {how}")
        wrong += [f"{where}, {how}: {problem}" for problem in problems(scene)]
    assert not wrong, "\n".join(wrong)


def test_a_repair_is_interrupted_behind_all_that_it_has_to_finish(tmp_path: Path) -> None:
    """It was behind the first of two journals, and the domain stood still until the next repair."""
    scene = begun(tmp_path, "take --stop --quiesce", "mixed")
    assert kill_at(scene, take_and_stop, "before write snapshot.json 1")
    assert interrupt_at(scene, repair, "after end .stop.json 1") == "interrupted"
    assert not list(problems(scene))


SOME = 10
"""How many instants of each verb are tried; all of them take an hour."""
TRIED = [
    *((verb, ("snapvm", "contextlib"), SOME) for verb in VERBS),
    ("take --quiesce", ("snapvm.guestsystem",), 1000),
    ("take --stop --quiesce", ("snapvm.guestsystem",), 1000),
]


@pytest.mark.parametrize(("verb", "modules", "most"), TRIED)
def test_interrupted_between_any_two_instructions(
    tmp_path: Path, verb: str, modules: tuple[str, ...], most: int
) -> None:
    """Ctrl-C where Python hears it, at some of the places that a verb comes to."""
    living = begun(tmp_path / "living", verb, "mixed")
    places: dict[tuple[object, ...], Instant] = {}
    for instant in instants_of(partial(VERBS[verb], living), modules):
        places.setdefault(instant[:-1], instant)
    chosen = random.Random(verb).sample([*places.values()], min(most, len(places)))
    wrong = []
    for number, instant in enumerate(chosen):
        scene = begun(tmp_path / str(number), verb, "mixed")
        left = partial(state_of, scene)
        how, state = interrupted_at(partial(VERBS[verb], scene), modules, instant, left)
        become(scene, state)
        if how not in ("done", "interrupted"):
            wrong.append(f"{instant}: {how}")
        wrong += [f"{instant}, {how}: {problem}" for problem in problems(scene)]
    assert not wrong, "\n".join(wrong)
