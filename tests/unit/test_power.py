"""No deed relies on what a cut of the power would take: not on a file, and not on a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import consistency
from snapvm.model import SideKind, SidePlace, SideShape, Silent
from snapvm.recordfolder import INTENT_FILE
from tests.fakes.power import Disk
from tests.fakes.scene import Scene
from tests.unit.deeds import delete, roll_back, take


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
