"""The commands of snapvm, as one after another is given on a scene."""

from __future__ import annotations

from typing import Any

from snapvm import consistency, diagnosis, naming, rebuilding, remaking
from snapvm.consistency import TakeRequest
from snapvm.model import Record, Silent
from tests.fakes import meanwhile
from tests.fakes.mortal import Command
from tests.fakes.scene import DOMAIN, UUID, Scene

KEPT = "kept"
"""The snapshot that every scene begins with."""


def take(scene: Scene) -> object:
    return _take(scene, "dying")


def take_disks(scene: Scene) -> object:
    return _take(scene, "dying", with_memory=False)


def take_and_stop(scene: Scene) -> object:
    return _take(scene, "dying", stop=True, quiesce=True)


def _take(scene: Scene, name: str, **asked: Any) -> object:
    is_on = meanwhile.is_on(scene)
    asked["quiesce"] = asked.get("quiesce", False) and is_on
    request = TakeRequest(domain=DOMAIN, name=name, **asked)
    return consistency.take(scene.host, request, Silent())


def roll_back(scene: Scene) -> object:
    return _go_back(scene, KEPT)


def undo(scene: Scene) -> object:
    undos = [id_ for id_ in scene.ids() if naming.is_undo(id_)]
    return _go_back(scene, undos[-1]) if undos else None


def _go_back(scene: Scene, id_: str) -> object:
    record = next((record for record in records(scene) if record.id == id_), None)
    if record is None:
        return None
    return consistency.rollback(scene.host, record, paused=False, progress=Silent())


def delete(scene: Scene) -> object:
    consistency.delete(scene.host, records(scene), Silent())
    return None


def doctor(scene: Scene) -> object:
    return diagnosis.look(scene.host, DOMAIN)


def repair(scene: Scene) -> object:
    return consistency.repair_all(scene.host, None, Silent())


def rebuild(scene: Scene) -> object:
    return remaking.put_all(scene.host, rebuilding.look(scene.host)[0])


def rebuild_damaged(scene: Scene) -> object:
    """Of those without memory: the image of the fake tells nothing of its domain."""
    for record in [each for each in records(scene) if each.memory is None][:1]:
        scene.host.catalog.path(record, "snapshot.json").write_text("{")
    return rebuild(scene)


FIRST: dict[str, Command] = {
    "take": take,
    "take --disk-only": take_disks,
    "take --stop": take_and_stop,
    "rollback": roll_back,
    "rollback again": roll_back,
    "undo": undo,
    "delete": delete,
    "doctor": doctor,
    "catalog rebuild": rebuild_damaged,
}
NEXT: dict[str, Command] = {
    "repair": repair,
    "repair again": repair,
    "repair thrice": repair,
    "take": take,
    "rollback": roll_back,
    "undo": undo,
    "delete": delete,
    "doctor": doctor,
}


def records(scene: Scene) -> list[Record]:
    return [e for e in scene.host.catalog.entries(UUID) if isinstance(e, Record)]
