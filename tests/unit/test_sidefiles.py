"""UEFI variables and a vTPM's state: of the same instant as the disks, and back with them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from snapvm import checking, consistency, diagnosis, recordfile, sidefiles
from snapvm.consistency import TakeRequest
from snapvm.failures import CaptureFailed, StorageFailed
from snapvm.model import Domain, DomainState, Record, SideKind, SidePlace, SideShape, Silent
from snapvm.refusals import DomainRefused, RecordUnusable
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.fakes.storage import unanswered
from tests.unit.deeds import die, fail_deed, mend, revive, roll_back

MODE = 0o640


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A domain that counts onto its disks and into both of its places."""
    scene = make_scene(tmp_path, thick=("vg1",))
    tpm = tmp_path / "swtpm" / "tpm2"
    tpm.mkdir(parents=True)
    (tpm / ".lock").touch()
    scene.machine.places = (
        SidePlace(kind=SideKind.NVRAM, path=tmp_path / "demo_VARS.fd"),
        SidePlace(kind=SideKind.TPM, path=tpm, shape=SideShape.FOLDER),
    )
    scene.count(5)
    os.chmod(nvram(scene), MODE)
    return scene


def nvram(scene: Scene) -> Path:
    return scene.machine.places[0].path


def tpm(scene: Scene) -> Path:
    return scene.machine.places[1].path


def held(scene: Scene) -> list[str]:
    return [nvram(scene).read_text(), (tpm(scene) / "state").read_text()]


def take(scene: Scene, name: str = "a", *, with_memory: bool = True) -> Record:
    request = TakeRequest(domain=DOMAIN, name=name, with_memory=with_memory)
    return consistency.take(scene.host, request, Silent())


@pytest.mark.parametrize("with_memory", [True, False])
def test_they_come_back_and_what_was_current_is_kept(scene: Scene, with_memory: bool) -> None:
    record = take(scene, with_memory=with_memory)
    assert [(side.kind, side.file) for side in record.side_files] == [
        (SideKind.NVRAM, "nvram.demo_VARS.fd"),
        (SideKind.TPM, "tpm.state"),
    ]
    scene.count(3)
    (tpm(scene) / "volatile").write_text("of another life")
    undo = roll_back(scene, record).undo
    assert held(scene) == ["5", "5"]
    assert sorted(path.name for path in tpm(scene).iterdir()) == [".lock", "state"]
    assert nvram(scene).stat().st_mode & 0o777 == MODE, "it is still its owner's"
    assert len(undo.side_files) == 3
    roll_back(scene, scene.host.catalog.get(UUID, undo.id))
    assert held(scene) == ["8", "8"] and (tpm(scene) / "volatile").exists()
    left = {path.name for path in (scene.host.settings.state_dir / "domains" / UUID).iterdir()}
    assert not any("aside" in name for name in left)


def test_the_record_tells_of_them(scene: Scene) -> None:
    record = take(scene)
    assert recordfile.from_dict(recordfile.as_dict(record), "x") == record
    spoiled = json.loads(recordfile.dump(record))
    for name in ("../x", ".x", "", "a/b"):
        spoiled["side_files"][0]["name"] = name
        with pytest.raises(RecordUnusable):
            recordfile.from_dict(spoiled, "x")
    scene.machine.places = ()
    assert "side_files" not in recordfile.as_dict(take(scene, "b"))


@pytest.mark.parametrize("spoil", ["change", "remove"])
def test_a_copy_that_has_changed_is_found_and_not_put_back(scene: Scene, spoil: str) -> None:
    record = take(scene)
    copy = scene.host.catalog.path(record, "nvram.demo_VARS.fd")
    copy.write_text("6") if spoil == "change" else copy.unlink()
    (found,) = checking.look(scene.host, None, Silent(), deep=False)
    assert found.subject == "demo@a" and "its UEFI variables or vTPM: " in found.problem
    with pytest.raises(RecordUnusable):
        consistency.plan_rollback(scene.host, record, Silent())
    consistency.delete(scene.host, [record], Silent())
    assert not copy.parent.exists()


def test_what_a_newer_snapvm_has_summed_up_otherwise_is_no_hindrance(scene: Scene) -> None:
    record = take(scene)
    sides = tuple(replace(side, checksum="newer-pieces:00") for side in record.side_files)
    path = scene.host.catalog.path(record, "snapshot.json")
    path.write_text(recordfile.dump(replace(record, side_files=sides)))
    assert checking.look(scene.host, None, Silent(), deep=False) == ()
    roll_back(scene, scene.host.catalog.get(UUID, record.id))
    assert held(scene) == ["5", "5"]


def test_what_is_not_there_yet_is_told(scene: Scene) -> None:
    nvram(scene).unlink()
    record = take(scene)
    assert [(drive.target, "not there yet" in drive.why) for drive in record.omitted] == [
        ("nvram", True)
    ]
    assert [side.kind for side in record.side_files] == [SideKind.TPM]
    scene.count(1)
    roll_back(scene, record)
    assert held(scene) == ["6", "5"], "the record has no variables: those there are stay"


def test_what_is_too_large_is_refused_before_anything(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidefiles, "LIMIT_BYTES", 1)
    with pytest.raises(DomainRefused, match="can be captured"):
        take(scene)
    assert scene.ids() == []
    (refusal,) = diagnosis.look(scene.host, DOMAIN).refusals
    assert "can be captured" in refusal.message()


def test_doctor_tells_of_what_is_not_there_yet(scene: Scene) -> None:
    nvram(scene).unlink()
    (omitted,) = diagnosis.look(scene.host, DOMAIN).omitted
    assert (omitted.target, "not there yet" in omitted.why) == ("nvram", True)


class _Spoiler(Silent):
    """Makes a link of a file when the window is open, before anything reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def phase(self, text: str) -> None:
        if text == "making snapshots":
            self._path.symlink_to(self._path.rename(self._path.with_suffix(".old")))


def test_one_that_cannot_be_read_in_the_window_fails_the_take(scene: Scene) -> None:
    with pytest.raises(StorageFailed):
        consistency.take(scene.host, TakeRequest(domain=DOMAIN), _Spoiler(nvram(scene)))
    assert scene.ids() == []
    with pytest.raises(DomainRefused, match="is a link"):
        take(scene)


def test_places_that_cannot_be_kept_are_refused_before_the_domain_is_ended(scene: Scene) -> None:
    """Met later, they kept every `repair` from finishing, with the domain off."""
    record = take(scene)
    scene.count(1)
    path = nvram(scene)
    path.symlink_to(path.rename(path.with_suffix(".old")))
    with pytest.raises(DomainRefused, match="is a link"):
        roll_back(scene, record)
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.ids() == ["a"] and scene.host.catalog.leftovers(UUID) == ()


def test_what_grows_too_large_meanwhile_is_no_bug(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidefiles, "check", lambda *_: ())
    monkeypatch.setattr(sidefiles, "LIMIT_BYTES", 0)
    with pytest.raises(StorageFailed, match="larger than"):
        take(scene)
    assert scene.ids() == []


def test_what_goes_with_its_domain_is_kept_before_that(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt removes the vTPM of a transient domain when it ends."""
    record = take(scene)
    scene.count(1)
    stop = scene.hypervisor.stop

    def stop_and_remove(domain: Domain) -> None:
        stop(domain)
        shutil.rmtree(tpm(scene).parent)

    with monkeypatch.context() as patched:
        patched.setattr(scene.hypervisor, "stop", stop_and_remove)
        undo = roll_back(scene, record).undo
    kept = {side.kind for side in undo.side_files}
    assert kept == {SideKind.NVRAM, SideKind.TPM}


def test_nothing_is_left_aside_by_a_rollback_that_is_put_back(scene: Scene) -> None:
    record = take(scene)
    fail_deed(scene, "stop")
    with pytest.raises(CaptureFailed):
        roll_back(scene, record)
    assert not list(scene.host.settings.state_dir.rglob("*.aside"))
    revive(scene)
    die(scene, record, "stop")
    (leftover,) = scene.host.catalog.leftovers(UUID)
    undo_id = leftover.intent["undo_record"]["id"]
    scene.host.catalog.aside(UUID, undo_id).mkdir()  # as one leaves it that is killed here
    mend(scene)
    assert not list(scene.host.settings.state_dir.rglob("*.aside"))
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_only_what_the_domain_has_now_is_written(scene: Scene, tmp_path: Path) -> None:
    record = take(scene)
    scene.count(1)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    place = replace(scene.machine.places[0], path=moved / "other.fd")
    scene.machine.places = (place,)
    roll_back(scene, record)
    assert (moved / "other.fd").read_text() == "5"
    assert (tmp_path / "demo_VARS.fd").read_text() == "6"


def test_variables_of_one_firmware_are_not_given_to_another(scene: Scene, tmp_path: Path) -> None:
    """A flash's content is nothing that QEMU reads as JSON: the domain would not start."""
    record = take(scene)
    store = tmp_path / "demo.json"
    store.write_text("its own")
    place = SidePlace(kind=SideKind.VARSTORE, path=store)
    scene.machine.places = (place,)
    roll_back(scene, record)
    assert store.read_text() == "its own"
    scene.count(1)
    again = take(scene, "b")
    scene.count(1)
    roll_back(scene, again)
    assert store.read_text() == "6"


@pytest.fixture
def on_device(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the variables on what stands for a block device, by a link as udev makes them."""
    monkeypatch.setattr(sidefiles, "IS_DEVICE", stat.S_ISREG)
    (device := tmp_path / "dm-7").write_text("5")
    (tmp_path / "vg").mkdir()
    (link := tmp_path / "vg" / "vars").symlink_to(device)
    place = SidePlace(kind=SideKind.NVRAM, path=link, shape=SideShape.DEVICE)
    scene.machine.places = (place, scene.machine.places[1])
    return device


def test_variables_on_a_device_come_back_too(scene: Scene, on_device: Path) -> None:
    """They were left out: a snapshot of the disks alone came back with others."""
    inode = on_device.stat().st_ino
    record = take(scene, with_memory=False)
    assert [side.file for side in record.side_files] == ["nvram.vars", "tpm.state"]
    on_device.write_text("8")
    undo = roll_back(scene, record).undo
    assert on_device.read_text() == "5" and on_device.stat().st_ino == inode, "it is still that"
    assert nvram(scene).is_symlink()
    roll_back(scene, scene.host.catalog.get(UUID, undo.id))
    assert on_device.read_text() == "8"


def test_a_device_that_is_not_there_is_made_by_nobody(scene: Scene, on_device: Path) -> None:
    record = take(scene, with_memory=False)
    nvram(scene).unlink()
    roll_back(scene, record)
    assert not nvram(scene).exists() and on_device.read_text() == "5"
    again = take(scene, "b", with_memory=False)
    assert [(drive.target, "not there yet" in drive.why) for drive in again.omitted] == [
        ("nvram", True)
    ]


def test_a_device_that_is_none_or_too_large_is_refused(
    scene: Scene, on_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(on_device, (128 << 20) + 1)
    with pytest.raises(DomainRefused, match="128 MiB can be captured"):
        take(scene)
    monkeypatch.setattr(sidefiles, "IS_DEVICE", stat.S_ISBLK)
    with pytest.raises(DomainRefused, match="it is no block device"):
        take(scene)


def test_a_server_that_goes_away_in_the_window_does_not_keep_the_domain(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still for as long as the file of its variables did not answer."""
    settings = replace(scene.host.settings, window_limit_seconds=0.3)
    host, before = replace(scene.host, settings=settings), scene.lvm.names()
    with ExitStack() as down:

        def go_away(deed: str) -> None:
            if deed == "window":
                down.enter_context(unanswered(monkeypatch, nvram(scene)))

        scene.hypervisor.before = go_away
        with pytest.raises(StorageFailed, match="does not answer within"):
            consistency.take(host, TakeRequest(domain=DOMAIN), Silent())
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.lvm.names() == before and scene.ids() == []


def test_a_server_that_is_gone_already_is_not_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = take(scene)
    with unanswered(monkeypatch, nvram(scene)):
        for deed in (lambda: take(scene, "b"), lambda: roll_back(scene, record)):
            with pytest.raises(DomainRefused, match="its nvram does not answer") as refused:
                deed()
            assert "findmnt" in refused.value.hint()
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and scene.ids() == ["a"]


def test_a_server_that_goes_away_does_not_keep_a_domain_that_is_to_go_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, names = take(scene), scene.lvm.names()
    with ExitStack() as down:

        def go_away(deed: str) -> None:
            if deed == "freeze":
                down.enter_context(unanswered(monkeypatch, nvram(scene)))

        scene.hypervisor.before = go_away
        with pytest.raises(StorageFailed, match="does not answer within"):
            roll_back(scene, record)
        assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
    assert scene.lvm.names() == names and scene.ids() == ["a"]
