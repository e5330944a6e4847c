"""No deed relies on what a cut of the power would take: not on a file, and not on a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapvm import consistency, durable
from snapvm.catalog import Catalog
from snapvm.consistency import TakeRequest
from snapvm.failures import CaptureFailed
from snapvm.model import DomainState, SideKind, SidePlace, SideShape, Silent
from snapvm.recordfolder import INTENT_FILE
from tests.fakes import mortal
from tests.fakes.power import Disk
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import (
    begun,
    delete,
    die,
    fail_deed,
    mend,
    roll_back,
    take,
    take_at_five,
    use,
)


@pytest.fixture
def scene(tmp_path: Path, scene: Scene) -> Scene:
    """One whose domain has UEFI variables and a vTPM, too."""
    for folder in ("nvram", "tpm2"):
        (tmp_path / folder).mkdir()
    scene.machine.places = (
        SidePlace(kind=SideKind.NVRAM, path=tmp_path / "nvram" / "VARS.fd"),
        SidePlace(kind=SideKind.TPM, path=tmp_path / "tpm2", shape=SideShape.FOLDER),
    )
    scene.count(2)
    return scene


class Watch:
    """Looks, before everything that LVM or the hypervisor does, at what the disk would forget."""

    def __init__(self, scene: Scene, disk: Disk) -> None:
        self.forgotten: set[Path] = set()
        self.starts = 0
        self._disk = disk
        self._state_dir = scene.host.settings.state_dir
        nvram, tpm = (place.path for place in scene.machine.places)
        self._of_domain = (nvram.parent, tpm)
        self._is_beside = False
        scene.lvm.before = self._look
        scene.hypervisor.before = self._look

    def _look(self, deed: object) -> None:
        if deed in ("restore", "start"):
            self._is_beside = True  # bookkeeping has begun beside it, and nothing relies on that
            self.starts += 1
            for path in (*self._of_domain, *self._state_dir.glob("domains/*/.*.json")):
                self.forgotten |= set(self._disk.losing(path))
        if self._state_dir.exists() and not self._is_beside:
            self.look()

    def look(self) -> None:
        """Note what would be gone that counts, and what would be there again."""
        self._is_beside = False
        state_dir, disk = self._state_dir, self._disk
        self.forgotten |= {path for path in disk.losing(state_dir) if not _is_unfinished(path)}
        self.forgotten |= {path for path in disk.regaining(state_dir) if not _is_journal(path)}


def _is_unfinished(path: Path) -> bool:
    """Tell whether nothing depends on a file yet, or ever: an image that is written, or a lock."""
    return path.suffix == ".lock" or (path.parent.suffix == ".draft" and path.suffix == ".save")


def _is_journal(path: Path) -> bool:
    """Tell whether a name is a journal's: one that comes back is seen to have ended."""
    return path.name.startswith(".") or path.name == INTENT_FILE


def test_what_was_done_is_on_the_disk_before_what_relies_on_it(scene: Scene) -> None:
    with Disk.watched() as disk:
        watch = Watch(scene, disk)
        record = take(scene, "a")
        watch.look()
        scene.count(2)
        done = roll_back(scene, record)
        watch.look()
        delete(scene, record)
        consistency.rollback(scene.host, done.undo, paused=False, progress=Silent())
        watch.look()
    assert watch.starts == 2
    assert watch.forgotten == set()


_LATER = {"commit": {"lvchange"}, "write_journal": {"lvchange"}, "end_journal": {"lvremove"}}
"""What LVM may have in the cache of a disk yet: tags that a repair corrects, orphans."""


def watched(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return what of LVM's a power cut takes though a record or a journal elsewhere relies on it.

    It fills up as they are written.  A journal of the preparation relies on nothing.
    """
    lost: set[str] = set()

    def looking(name: str, deed: Callable[..., Any]) -> Callable[..., Any]:
        def look(*arguments: Any, **named: Any) -> Any:
            is_begun = name == "write_journal" and arguments[-1].get("phase") == "prepare"
            of_lvm = set() if is_begun else set(scene.lvm.unflushed)  # it is changed beside this
            lost.update(f"{name}: {verb}" for _, verb in of_lvm if verb not in _LATER[name])
            return deed(*arguments, **named)

        return look

    for name in _LATER:
        monkeypatch.setattr(Catalog, name, looking(name, getattr(Catalog, name)))
    return lost


@pytest.fixture
def relied_on(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    return watched(scene, monkeypatch)


def test_what_lvm_did_is_not_in_the_cache_of_a_disk_alone(
    scene: Scene, relied_on: set[str]
) -> None:
    """LVM does not have a disk empty its cache; a journal on another disk would outlast it."""
    record = take_at_five(scene)
    done = roll_back(scene, record)
    consistency.rollback(scene.host, done.undo, paused=False, progress=Silent())
    assert relied_on == set() and scene.disk_data() == ["10", "10"]


def test_what_lvm_did_is_on_the_disk_where_a_rollback_is_taken_back(
    scene: Scene, relied_on: set[str]
) -> None:
    """Without the names the domain would be booted from the snapshot, and no journal tell why."""
    record = take_at_five(scene)
    fail_deed(scene, "stop")
    with pytest.raises(CaptureFailed):
        roll_back(scene, record)
    assert relied_on == set() and scene.disk_data() == ["10", "10"]


def test_what_lvm_did_is_on_the_disk_where_a_repair_takes_it_back(
    scene: Scene, relied_on: set[str]
) -> None:
    record = take_at_five(scene)
    die(scene, record, "stop")
    mend(scene)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.host.catalog.leftovers(UUID) == ()
    assert relied_on == set() and scene.disk_data() == ["10", "10"]


def test_what_lvm_did_is_on_the_disk_where_a_repair_makes_clones_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, record = begun(tmp_path, "vg1")
    relied_on = watched(scene, monkeypatch)
    die(scene, record, "vg1/")
    use(scene)
    mend(scene)
    assert relied_on == set() and scene.disk_data() == ["5", "5"]


@pytest.mark.parametrize(("work", "deed"), [("stop", "stop"), ("delete", "lvremove")])
def test_a_repair_relies_on_no_name_that_a_killed_command_may_not_have_brought_to_the_disk(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, work: str, deed: str
) -> None:
    """The domain would be off without its snapshot, or a snapshot be there without its volumes."""
    if work == "stop":
        request = TakeRequest(domain=DOMAIN, name="x", stop=True)
        assert mortal.kill_at(
            scene, lambda there: consistency.take(there.host, request, Silent()), "before stop 1"
        )
    else:
        record = take(scene, "x")
        assert mortal.kill_at(scene, lambda there: delete(there, record), "before lvm lvremove 1")
    synced: list[Path] = []
    at_deed: list[Path] = []

    def before(done: object) -> None:
        if deed == (done[1] if isinstance(done, tuple) else done):
            at_deed.extend(synced)

    scene.lvm.before = scene.hypervisor.before = before
    monkeypatch.setattr(durable, "sync_folder", synced.append)
    mend(scene)
    assert scene.host.settings.state_dir / "domains" / UUID in at_deed
    assert scene.ids() == (["x"] if work == "stop" else [])
