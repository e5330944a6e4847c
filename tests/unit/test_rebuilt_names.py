"""What the catalog calls a domain once records of it were made anew: as its newest one does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import consistency, rebuilding, recordfile, remaking
from snapvm.cli import lookup
from snapvm.consistency import TakeRequest
from snapvm.model import Silent, SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene


@pytest.fixture
def renamed(tmp_path: Path) -> Scene:
    """A domain with a snapshot from before it was renamed, and one from after."""
    scene = make_scene(tmp_path)
    take(scene, DOMAIN, "a-old")
    record = scene.host.catalog.get(UUID, SnapshotId("a-old"))
    path = scene.host.catalog.path(record, "snapshot.json")
    path.write_text(recordfile.dump(replace(record, created="2026-01-01T00:00:00.000+00:00")))
    scene.hypervisor.rename(DOMAIN, "other")
    take(scene, "other", "b-new")
    assert scene.host.catalog.domains() == ((UUID, "other"),)
    return scene


def take(scene: Scene, domain: str, id_: str) -> None:
    request = TakeRequest(domain=domain, name=id_, with_memory=False)
    consistency.take(scene.host, request, Silent())


def rebuild(scene: Scene) -> None:
    rebuilt, _ = rebuilding.look(scene.host)
    made, hopeless = remaking.put_all(scene.host, rebuilt)
    assert made == rebuilt and not hopeless


def shown(scene: Scene, name: str) -> set[str]:
    return {entry.id for _, entry in lookup.entries(scene.host.catalog, name)}


@pytest.mark.parametrize("with_name", [True, False])
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("lost", [("a-old",), ("b-new",), ("a-old", "b-new")])
def test_a_domain_keeps_its_name_when_older_records_are_made_anew(
    renamed: Scene, lost: tuple[str, ...], is_reversed: bool, with_name: bool
) -> None:
    """`list` showed the others no more, and `prune` of a domain that got the old name did."""
    domain_folder = renamed.host.settings.state_dir / "domains" / UUID
    for id_ in lost:
        shutil.rmtree(domain_folder / id_)
    if not with_name:
        (domain_folder / ".name").unlink()
    if is_reversed:
        renamed.lvm.volumes.reverse()
    rebuild(renamed)
    assert renamed.host.catalog.domains() == ((UUID, "other"),)
    assert shown(renamed, "other") == {"a-old", "b-new"} and shown(renamed, DOMAIN) == {"a-old"}


@pytest.mark.parametrize("is_reversed", [False, True])
def test_it_has_that_of_the_newest_when_the_state_folder_is_lost(
    renamed: Scene, is_reversed: bool
) -> None:
    shutil.rmtree(renamed.host.settings.state_dir)
    if is_reversed:
        renamed.lvm.volumes.reverse()
    rebuild(renamed)
    assert renamed.host.catalog.domains() == ((UUID, "other"),)
    assert shown(renamed, "other") == {"a-old", "b-new"}
