"""Upgrades and downgrades: what a newer snapvm wrote, and one that is replaced while it works."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from snapvm import checking, memory, rebuilding, recordfile
from snapvm.attention import LeftBehind
from snapvm.model import ImageFormat, Record, Silent
from snapvm.recordfolder import Damaged, Work, hidden_folder
from tests.fakes.scene import UUID, Scene
from tests.unit.deeds import mend, take, with_settings

LEAVE_IT = "use the snapvm that wrote it"

NEW_WORDS: dict[str, tuple[Any, ...]] = {
    "kind": ("kind",),
    "hypervisor": ("domain", "hypervisor"),
    "state": ("domain", "state"),
    "kind of a volume": ("disks", 0, "kind"),
    "kind of a side file": ("side_files", 0, "kind"),
}


def rewritten(record: Record, place: tuple[Any, ...], word: object) -> str:
    said = recordfile.as_dict(record)
    said["side_files"] = [{"kind": "nvram", "name": "x", "size_bytes": 0, "checksum": ""}]
    inside: Any = said
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = word
    return json.dumps(said)


def file_of(scene: Scene, record: Record) -> Path:
    return scene.host.catalog.path(record, "snapshot.json")


@pytest.mark.parametrize("what", NEW_WORDS)
def test_a_record_with_a_word_of_a_newer_snapvm_is_not_damaged(scene: Scene, what: str) -> None:
    """It was, and `catalog rebuild` put one in its place that lacked its note and its checksum."""
    record = take(scene, "x")
    file = file_of(scene, record)
    file.write_text(rewritten(record, NEW_WORDS[what], "novel"))
    before = file.read_bytes()
    (entry,) = scene.host.catalog.entries(UUID)
    assert isinstance(entry, Damaged) and entry.may_be_whole and "'novel'" in entry.why
    assert LEAVE_IT in entry.trouble().hint()
    rebuilt, hopeless = rebuilding.look(scene.host)
    assert rebuilt == () and ["newer snapvm" in each.why for each in hopeless] == [True]
    assert file.read_bytes() == before


def test_an_image_of_a_newer_format_is_not_to_be_deleted(scene: Scene) -> None:
    record = take(scene, "x")
    file_of(scene, record).write_text(rewritten(record, ("memory", "format"), "novel"))
    remedies = [
        found.remedy
        for found in checking.look(scene.host, None, Silent(), deep=True)
        if "novel" in found.problem
    ]
    assert len(remedies) == 1 and LEAVE_IT in remedies[0] and "delete" not in remedies[0]


@pytest.mark.parametrize(
    ("place", "word", "helps"),
    [
        (("schema",), 99, LEAVE_IT),
        (("kind",), "novel", LEAVE_IT),
        (("domain", "vcpus"), "two", "move the journal out of the state folder"),
    ],
)
def test_a_half_deleted_record_that_cannot_be_read_says_what_helps(
    scene: Scene, place: tuple[Any, ...], word: object, helps: str
) -> None:
    """ "`snapvm repair` tries again", it said, and each time so did every command on the domain."""
    record = take(scene, "x")
    names = scene.lvm.names()
    file_of(scene, record).write_text(rewritten(record, place, word))
    folder = scene.host.catalog.folder(UUID, record.id)
    folder.rename(folder.with_name(hidden_folder(record.id, Work.DELETE)))
    with pytest.raises(LeftBehind) as told:
        mend(scene)
    assert helps in told.value.hint() and "tries again" not in told.value.hint()
    assert scene.lvm.names() == names and scene.host.catalog.leftovers(UUID)


class _Gone:
    """Finds no module of snapvm: its package, or the environment it is in, was removed."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith("snapvm"):
            raise ModuleNotFoundError(name)
        return None


def test_a_package_that_is_replaced_while_memory_is_written_costs_no_snapshot(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of writing was thrown away as a bug, for a module that had not been loaded before."""
    monkeypatch.delitem(sys.modules, "snapvm.memory.sparseimage", raising=False)
    monkeypatch.delattr(memory, "sparseimage", raising=False)
    scene = with_settings(scene, image_format=ImageFormat.SPARSE)
    scene.hypervisor.installed = {"libvirt": "11.3.0", "qemu": "10.0.1"}

    def before(deed: str) -> None:
        if deed == "window":
            monkeypatch.setattr(sys, "meta_path", [_Gone(), *sys.meta_path])

    scene.hypervisor.before = before
    assert "sparse" in take(scene, "x").capture
    assert isinstance(sys.meta_path[0], _Gone) and scene.ids() == ["x"]
