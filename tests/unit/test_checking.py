"""``check`` beside other commands: what comes and goes while it looks is in order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapvm import checking, consistency, images
from snapvm.checking import Finding
from snapvm.lvm.report import Report
from snapvm.model import MemoryRecord, Progress, Record, Silent, SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import roll_back, take


def look(scene: Scene) -> tuple[Finding, ...]:
    return checking.look(scene.host, None, Silent(), deep=True)


def delete(scene: Scene, record: Record) -> None:
    consistency.delete(scene.host, [record], Silent())


MEANWHILE: dict[str, Callable[[Scene, Record], object]] = {
    "take": lambda scene, _record: take(scene, "new"),
    "rollback": roll_back,
    "delete": delete,
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_happens_while_images_are_read_is_in_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    record = take(scene, "old")
    read = images.check_contents
    done: list[str] = []

    def slowly(path: Path, memory: MemoryRecord, progress: Progress) -> None:
        if not done:
            done.append(what)
            MEANWHILE[what](scene, record)
        read(path, memory, progress)

    monkeypatch.setattr(images, "check_contents", slowly)
    assert look(scene) == () and done


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_happens_after_lvm_was_asked_is_in_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    record = take(scene, "old")
    ask = scene.host.lvm.report
    asked: list[Report] = []

    def late() -> Report:
        report = ask()
        if not asked:
            asked.append(report)
            MEANWHILE[what](scene, record)
        return report

    monkeypatch.setattr(scene.host.lvm, "report", late)
    assert look(scene) == () and asked


def test_what_is_worked_on_from_another_state_folder_is_not_told_of(scene: Scene) -> None:
    """The lock, which they share, is all there is to be seen of it."""
    take(scene, "old")
    shutil.rmtree(scene.host.catalog.folder(UUID, SnapshotId("old")))
    assert len(look(scene)) == 2
    with scene.host.catalog.locked(UUID, DOMAIN):
        assert look(scene) == ()
