"""``check`` beside other commands: what comes and goes while it looks is in order."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency, images
from snapvm.catalog import Catalog
from snapvm.checking import Finding
from snapvm.consistency import TakeRequest
from snapvm.lvm.report import Report
from snapvm.model import DomainUuid, MemoryRecord, Progress, Record, Silent, SnapshotId
from snapvm.recordfolder import Damaged, Leftover, Work
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import delete, roll_back, take


def look(scene: Scene) -> tuple[Finding, ...]:
    return checking.look(scene.host, None, Silent(), deep=True)


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


def test_a_take_that_begins_meanwhile_is_not_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that checks every minute must not make a nightly `take` fail now and then."""
    take(scene, "old")
    find = Catalog.leftovers
    begun: list[DomainUuid] = []

    def meanwhile(catalog: Catalog, uuid: DomainUuid) -> tuple[Leftover, ...]:
        if not begun:
            begun.append(uuid)
            take(scene, "new")
        return find(catalog, uuid)

    monkeypatch.setattr(Catalog, "leftovers", meanwhile)
    assert look(scene) == () and scene.ids() == ["old", "new"]


def test_what_is_to_be_typed_is_quoted_as_a_shell_wants_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    name = "web 1; reboot"
    machine = scene.hypervisor.machines.pop(DOMAIN)
    machine.domain = replace(machine.domain, name=name)
    scene.hypervisor.machines[name] = machine
    record = consistency.take(scene.host, TakeRequest(domain=name, name="a"), Silent())
    scene.lvm.volumes.remove(
        scene.lvm.named(record.disks[0].snapshot.vg, record.disks[0].snapshot.lv)
    )
    scene.host.catalog.write_journal(UUID, Work.ROLLBACK, {})
    unfinished, lost = look(scene)
    assert unfinished.remedy.endswith("snapvm repair 'web 1; reboot'")
    assert lost.remedy.endswith("snapvm delete 'web 1; reboot@a'")


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_happens_after_lvm_was_asked_is_in_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    record = take(scene, "old")
    ask = scene.host.lvm.report
    asked: list[Report] = []

    def late(limit_seconds: float = 60.0) -> Report:
        report = ask(limit_seconds)
        if not asked:
            asked.append(report)
            MEANWHILE[what](scene, record)
        return report

    monkeypatch.setattr(scene.host.lvm, "report", late)
    assert look(scene) == () and asked


def test_a_delete_that_is_at_work_during_both_looks_is_in_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor told somebody in the night of volumes that belong to no snapshot.

    It hid its record when journals had been read and records had not, and had ended, with its lock,
    when LVM had been asked once more.
    """
    take(scene, "kept")
    record = take(scene, "old")
    read, ask = Catalog.entries, scene.host.lvm.report
    hidden: list[Path] = []

    def late(catalog: Catalog, uuid: DomainUuid | None = None) -> Iterator[Record | Damaged]:
        if uuid is None and not hidden:
            hidden.append(catalog.hide(record))
        return read(catalog, uuid)

    def ended(limit_seconds: float = 60.0) -> Report:
        report = ask(limit_seconds)
        if hidden and hidden[0].exists():
            scene.host.lvm.remove([disk.snapshot for disk in record.disks], report)
            scene.host.catalog.forget(hidden[0])
        return report

    monkeypatch.setattr(Catalog, "entries", late)
    monkeypatch.setattr(scene.host.lvm, "report", ended)
    assert look(scene) == () and hidden


def test_what_is_worked_on_from_another_state_folder_is_not_told_of(scene: Scene) -> None:
    """The lock, which they share, is all there is to be seen of it."""
    take(scene, "old")
    shutil.rmtree(scene.host.catalog.folder(UUID, SnapshotId("old")))
    assert len(look(scene)) == 2
    with scene.host.catalog.locked(UUID, DOMAIN):
        assert look(scene) == ()


def test_a_look_waits_for_nobody_who_is_at_work(scene: Scene) -> None:
    """With lock_wait_seconds in the settings file a monitor hung for as long as a `take`."""
    take(scene, "old")
    shutil.rmtree(scene.host.catalog.folder(UUID, SnapshotId("old")))
    settings = scene.host.settings
    patient = Catalog(settings.state_dir, settings.run_dir, wait_seconds=30)
    begun = time.monotonic()
    with scene.host.catalog.locked(UUID, DOMAIN):
        draft = scene.host.catalog.draft(UUID, SnapshotId("new"))
        scene.host.catalog.begin(draft, DOMAIN, {"set": "0123456789ab"})
        assert look(replace(scene, host=replace(scene.host, catalog=patient))) == ()
    assert time.monotonic() - begun < 5
