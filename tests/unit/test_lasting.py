"""A disk that breaks between a name and its durability: what may be complete stays complete."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapvm import consistency, durable
from snapvm.attention import LeftBehind, NameUnclear
from snapvm.consistency import TakeRequest
from snapvm.errors import ExitStatus
from snapvm.model import DomainState, Silent, SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import roll_back, take


@contextmanager
def names_that_stick(new: str) -> Iterator[None]:
    """Let a name be given, not brought to the disk, and not be taken back."""
    sync_folder, rename = durable.sync_folder, Path.rename

    def wear_out(folder: Path) -> None:
        if (folder / new).exists():
            raise OSError(errno.EIO, "the disk has a bad block")
        sync_folder(folder)

    def stick(path: Path, target: Path) -> Path:
        if path.name == new:
            raise OSError(errno.EROFS, "it is read-only now")
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "sync_folder", wear_out)
        patch.setattr(Path, "rename", stick)
        yield


@pytest.mark.parametrize("is_there", [False, True])
def test_every_folder_above_the_first_record_lasts(scene: Scene, is_there: bool) -> None:
    """The lock of all hosts makes one of them before anything is written down."""
    state_dir = scene.host.settings.state_dir
    if is_there:
        state_dir.mkdir()
    synced: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "sync_folder", synced.append)
        take(scene)
    above = {state_dir / "domains" / UUID, state_dir / "domains", state_dir}
    assert above | (set() if is_there else {state_dir.parent}) <= set(synced)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("lasts", [False, True])
def test_a_record_that_may_or_may_not_last_keeps_its_parts(
    scene: Scene, stop: bool, lasts: bool
) -> None:
    """Whichever name the next boot finds: a whole record, or what repair takes back."""
    before = scene.lvm.names()
    request = TakeRequest(domain=DOMAIN, name="x", stop=stop)
    # The journal of a stop cannot be removed durably either.
    told = LeftBehind if stop else NameUnclear
    with names_that_stick("x"), pytest.raises(told, match="could not be given back") as unclear:
        consistency.take(scene.host, request, Silent())
    assert unclear.value.exit_status is ExitStatus.REPAIR_NEEDED
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    folder = scene.host.catalog.folder(UUID, SnapshotId("x"))
    assert scene.ids() == ["x"] and len(scene.lvm.names()) == len(before) + 2
    if not lasts:
        folder.rename(folder.with_name(".x.draft"))
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == ()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    if not lasts:
        assert scene.ids() == [] and scene.lvm.names() == before
        return
    assert not [v for v in scene.lvm.volumes if "snapvm.st=new" in v.tags]
    roll_back(scene, scene.host.catalog.get(UUID, SnapshotId("x")))


@pytest.mark.parametrize("lasts", [False, True])
def test_a_record_that_may_or_may_not_be_hidden_keeps_its_parts(scene: Scene, lasts: bool) -> None:
    before = scene.lvm.names()
    record = take(scene, "x")
    with names_that_stick(".x.gone"), pytest.raises(NameUnclear):
        consistency.delete(scene.host, [record], Silent())
    assert len(scene.lvm.names()) == len(before) + 2
    folder = scene.host.catalog.folder(UUID, record.id)
    if not lasts:
        folder.with_name(".x.gone").rename(folder)
    consistency.repair_all(scene.host, None, Silent())
    assert scene.ids() == ([] if lasts else ["x"])
    assert (scene.lvm.names() == before) is lasts
