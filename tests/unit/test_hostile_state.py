"""Records, journals and images that somebody else wrote into the state folder: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm import checking, consistency, rebuilding, rollbackplan
from snapvm.attention import JournalUnusable, LeftBehind
from snapvm.consistency import TakeRequest
from snapvm.errors import SnapvmError
from snapvm.model import (
    DomainState,
    DomainUuid,
    Record,
    SideKind,
    SidePlace,
    SideShape,
    Silent,
    SnapshotId,
)
from snapvm.recordfolder import Damaged, Work
from snapvm.refusals import RecordUnusable
from snapvm.rollbackjournal import Phase, RollbackJournal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import make_anew

JOURNALS = (".rollback.json", ".stop.json", ".x.draft/intent.json", ".x.gone/snapshot.json")
PRECIOUS = "precious"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain with a snapshot, and a volume that is nobody's business."""
    made = make_scene(tmp_path, thick=("vg1",))
    consistency.take(made.host, TakeRequest(domain=DOMAIN, name="kept"), Silent())
    made.lvm.add_disk("vg0", PRECIOUS, data="do not touch")
    return made


def record_of(scene: Scene) -> Record:
    return scene.host.catalog.get(UUID, SnapshotId("kept"))


def folder_of(scene: Scene) -> Path:
    return scene.host.settings.state_dir / "domains" / UUID


def everything(scene: Scene) -> tuple[set[str], set[Path]]:
    """Return all there is: volumes by uuid, files by path, but for the locks."""
    volumes = {f"{v.vg}/{v.name} {v.uuid}" for v in scene.lvm.volumes}
    files = scene.host.settings.state_dir.rglob("*")
    return volumes, {path for path in files if path.suffix != ".lock"}


def put(scene: Scene, name: str, text: str) -> Path:
    path = folder_of(scene) / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


SPOILED = {
    "empty": "",
    "truncated": '{"set": "0123456789ab", "groups": ["vg0',
    "no object": "[1, 2]",
    "deeply nested": '{"set":' * 100_000,
    "a number without end": '{"set": ' + "9" * 100_000 + "}",
    "of a newer snapvm": '{"journal": 2, "set": "0123456789ab", "was_running": true}',
    "of no version": '{"journal": "x"}',
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", JOURNALS)
def test_a_journal_of_no_use_is_refused(scene: Scene, name: str, how: str) -> None:
    """By every command on the domain, and told by ``check``; nothing is removed, not even it."""
    path = put(scene, name, SPOILED[how])
    before = everything(scene)
    with pytest.raises(JournalUnusable) as refused:
        consistency.repair_all(scene.host, DOMAIN, Silent())
    assert refused.value.path == str(path) and "move the journal" in refused.value.hint()
    assert ("newer snapvm" in refused.value.why) is (how == "of a newer snapvm")
    with pytest.raises(JournalUnusable):
        consistency.take(scene.host, TakeRequest(domain=DOMAIN), Silent())
    assert everything(scene) == before


def test_one_bad_domain_keeps_no_other_from_being_repaired(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may come first, and the other one may be paused; the worst is what it ends with."""
    catalog = scene.host.catalog
    known = catalog.domains()
    bad, busy = (DomainUuid(f"0000000{n}-2222-3333-4444-555555555555") for n in (0, 1))
    for uuid, name in ((bad, "bad"), (busy, "busy")):
        catalog.begin(catalog.draft(uuid, SnapshotId("x")), name, {})
    catalog.write_journal(bad, Work.ROLLBACK, {})
    (folder_of(scene).parent / bad / ".rollback.json").write_text("{")
    intent = {"set": "0123456789ab", "groups": ["vg0"], "was_running": True}
    catalog.begin(catalog.draft(UUID, SnapshotId("x")), DOMAIN, intent)
    scene.hypervisor.suspend(DOMAIN)
    everyone = ((bad, "bad"), (busy, "busy"), *known)
    monkeypatch.setattr(catalog, "domains", lambda: everyone)
    with catalog.locked(busy, "busy"), pytest.raises(JournalUnusable):
        consistency.repair_all(scene.host, None, Silent())
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert catalog.leftovers(UUID) == ()
    assert "another snapvm is working on busy" in caplog.text


FOREIGN_INTENTS: dict[str, dict[str, Any]] = {
    "a selection instead of a set": {"set": "x} || lv_name={precious", "groups": ["vg0"]},
    "a path instead of a group": {"set": "0123456789ab", "groups": ["../../dev/sda"]},
    "an option instead of a group": {"set": "0123456789ab", "groups": ["--all"]},
    "a selection instead of a disk": {
        "set": "0123456789ab",
        "groups": [],
        "disks": [{"vg": "vg0", "lv": "x", "uuid": "x || lv_name={precious"}],
    },
    "somebody else's set": {"set": "ffffffffffff", "groups": ["vg0", "vg1"]},
}


@pytest.mark.parametrize("how", FOREIGN_INTENTS)
def test_a_journal_cannot_have_foreign_volumes_removed(scene: Scene, how: str) -> None:
    intent = {"kind": "take", "domain": DOMAIN, "was_running": True, **FOREIGN_INTENTS[how]}
    put(scene, ".x.draft/intent.json", json.dumps(intent))
    volumes, _ = everything(scene)
    try:
        consistency.repair_all(scene.host, DOMAIN, Silent())
    except LeftBehind as refused:
        assert ".x.draft" in str(refused)
    assert everything(scene)[0] == volumes


def test_what_is_wrong_in_a_journal_is_said_in_words(scene: Scene) -> None:
    """It was told as `_Wrong("...")`, in the words of Python."""
    intent = {"was_running": True, **FOREIGN_INTENTS["a selection instead of a disk"]}
    put(scene, ".x.draft/intent.json", json.dumps(intent))
    with pytest.raises(LeftBehind) as refused:
        consistency.repair_all(scene.host, DOMAIN, Silent())
    assert "is damaged ('x || lv_name={precious' is not the uuid of a volume)" in str(refused.value)


def change(scene: Scene, *keys: str | int, value: object) -> None:
    """Write another value into the record on the disk."""
    path = folder_of(scene) / "kept" / "snapshot.json"
    data = json.loads(path.read_text())
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    assert keys[-1] in inner or isinstance(keys[-1], int)
    inner[keys[-1]] = value
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("file", ["../../../../etc/passwd", "/etc/passwd", "..", ".", "a\0b", ""])
def test_an_image_elsewhere_is_refused(scene: Scene, file: str) -> None:
    change(scene, "memory", "file", value=file)
    before = everything(scene)
    with pytest.raises(SnapvmError):
        record_of(scene)
    assert everything(scene) == before and Path("/etc/passwd").exists()


def delete(scene: Scene) -> None:
    consistency.delete(scene.host, [record_of(scene)], Silent())


def roll_back(scene: Scene) -> None:
    consistency.rollback(scene.host, record_of(scene), paused=False, progress=Silent())


@pytest.mark.parametrize("command", [delete, roll_back])
def test_a_record_that_names_a_foreign_volume(
    scene: Scene, command: Callable[[Scene], None]
) -> None:
    """A volume without our tags is not removed, and not gone back to."""
    precious = scene.lvm.named("vg0", PRECIOUS)
    change(scene, "disks", 0, "snapshot", "uuid", value=precious.uuid)
    change(scene, "disks", 0, "snapshot", "lv", value=PRECIOUS)
    data_before = scene.disk_data()
    if command is delete:
        command(scene)
    else:
        with pytest.raises(SnapvmError):
            command(scene)
    assert scene.lvm.named("vg0", PRECIOUS).data == "do not touch"
    assert scene.disk_data() == data_before


@pytest.mark.parametrize("phase", Phase)
def test_a_rollback_journal_that_names_a_foreign_volume(scene: Scene, phase: Phase) -> None:
    """It is not renamed, removed or written to."""
    plan = rollbackplan.plan(scene.host, record_of(scene))
    journal = RollbackJournal.of_plan(
        plan, rollbackplan.undo_record(plan), paused=False, set_time=True
    )
    text = json.dumps(replace(journal, phase=phase).as_dict())
    precious = scene.lvm.named("vg0", PRECIOUS)
    for volume in [v for v in scene.lvm.volumes if v.name.startswith(f"{DOMAIN}-d0")]:
        text = text.replace(volume.uuid, precious.uuid).replace(volume.name, PRECIOUS)
    put(scene, ".rollback.json", text)
    with suppress(SnapvmError):
        consistency.repair_all(scene.host, DOMAIN, Silent())
    assert scene.lvm.named("vg0", PRECIOUS).uuid == precious.uuid
    assert scene.lvm.named("vg0", PRECIOUS).data == "do not touch"


def test_no_link_is_followed(scene: Scene, tmp_path: Path) -> None:
    """A journal, a record or an image that is a link leads nowhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("{}")
    path = folder_of(scene) / ".stop.json"
    path.symlink_to(elsewhere)
    with pytest.raises(JournalUnusable):
        consistency.repair_all(scene.host, DOMAIN, Silent())
    path.unlink()
    image = folder_of(scene) / "kept" / "memory.save"
    image.rename(elsewhere)
    image.symlink_to(elsewhere)
    with pytest.raises(SnapvmError):
        roll_back(scene)
    assert elsewhere.exists()


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_nobody_can_be_asked_for_is_that_of_the_records(
    scene: Scene, name: str
) -> None:
    put(scene, ".name", name)
    assert scene.host.catalog.domains() == ((UUID, DOMAIN),)
    consistency.repair_all(scene.host, DOMAIN, Silent())


def test_a_record_of_another_place_is_none(scene: Scene) -> None:
    for uuid in (f"domains/{UUID}", "", "2"):
        change(scene, "domain", "uuid", value=uuid)
        (entry,) = scene.host.catalog.entries()
        assert isinstance(entry, Damaged) and "another place" in entry.why


def test_what_stands_at_the_name_of_a_new_side_file_is_not_written_to(
    scene: Scene, tmp_path: Path
) -> None:
    """Its folder is QEMU's or swtpm's: a pipe there kept a domain off, a link lost its file."""
    nvram, tpm = tmp_path / "VARS.fd", tmp_path / "tpm2"
    tpm.mkdir()
    scene.machine.places = (
        SidePlace(kind=SideKind.NVRAM, path=nvram),
        SidePlace(kind=SideKind.TPM, path=tpm, shape=SideShape.FOLDER),
    )
    scene.count(5)
    request = TakeRequest(domain=DOMAIN, name="sides")
    record = consistency.take(scene.host, request, Silent())
    scene.count(3)
    precious = tmp_path / "precious"
    precious.write_text("do not touch")
    os.link(precious, nvram.with_name(".VARS.fd.new"))
    os.mkfifo(tpm / ".state.new")
    consistency.rollback(scene.host, record, paused=False, progress=Silent())
    assert (nvram.read_text(), (tpm / "state").read_text()) == ("5", "5")
    assert precious.read_text() == "do not touch"


def test_all_is_private(scene: Scene) -> None:
    state = scene.host.settings.state_dir
    for path in [state, *state.rglob("*"), *scene.host.settings.run_dir.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def raise_it(_number: int, _frame: object) -> None:
    raise AssertionError("it waits for the other end of a pipe")


@pytest.fixture
def impatient() -> Iterator[None]:
    """Fail a test that waits for ever."""
    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("impatient")
def test_a_pipe_is_no_record_and_nobody_waits_for_it(scene: Scene) -> None:
    """It is damaged like any other, and made anew like any other."""
    folder = folder_of(scene) / "kept"
    make_pipe(folder / "snapshot.json")
    (damaged,) = scene.host.catalog.entries()
    assert isinstance(damaged, Damaged) and "no regular file" in damaged.why
    with pytest.raises(RecordUnusable):
        delete(scene)
    (folder / "memory.save").unlink()
    rebuilt, hopeless = rebuilding.look(scene.host)
    for each in rebuilt:
        assert make_anew(scene, each) == ""
    assert hopeless == () and record_of(scene).id == "kept"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", [".name", "kept/memory.save", "kept/nvram.x", *JOURNALS])
def test_nobody_waits_for_a_pipe_of_any_name(scene: Scene, name: str) -> None:
    make_pipe(put(scene, name, ""))
    with suppress(SnapvmError):
        consistency.repair_all(scene.host, DOMAIN, Silent())
    checking.look(scene.host, None, Silent(), deep=True)
    with suppress(SnapvmError):
        roll_back(scene)
    (folder_of(scene) / "kept" / "snapshot.json").write_text("{")
    rebuilding.look(scene.host)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)
