"""Records that are lost or damaged are made anew; what is good, or cannot be whole, is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapvm import consistency, imageformats, rebuilding
from snapvm.consistency import TakeRequest
from snapvm.lvm import belonging
from snapvm.lvm.belonging import Belonging
from snapvm.memory import libvirtimage
from snapvm.model import (
    DomainState,
    DomainUuid,
    Record,
    RecordKind,
    SideKind,
    SidePlace,
    SideShape,
    Silent,
    SnapshotId,
)
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.deeds import make_anew

XML = f"""<domain><name>{DOMAIN}</name><uuid>{UUID}</uuid><memory>4096</memory>
<vcpu>3</vcpu><devices>
<disk type='block' device='disk'><source dev='/dev/vg0/demo-d0'/><target dev='vda'/></disk>
<disk type='block' device='disk'><source dev='/dev/vg1/demo-d1'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/></disk></devices></domain>"""


def take(scene: Scene, name: str = "x", *, with_memory: bool = True) -> Record:
    request = TakeRequest(domain=DOMAIN, name=name, with_memory=with_memory)
    record = consistency.take(scene.host, request, Silent())
    if record.memory is not None:
        image = libvirtimage.Writer()
        path = scene.host.catalog.path(record, "memory.save")
        scene.host.catalog.path(record, record.memory.file).rename(path)
        descriptor = image.begin(path, XML, "")
        os.write(descriptor, b"QEVM and so on")
        os.close(descriptor)
        image.end(path)
        libvirtimage.set_running(path, running=True)
    return record


def rebuild(scene: Scene) -> list[str]:
    """Make anew what can be; return what cannot."""
    rebuilt, hopeless = rebuilding.look(scene.host)
    for each in rebuilt:
        assert make_anew(scene, each) == ""
    return [lost.why for lost in hopeless]


def file_of(scene: Scene, record: Record) -> Path:
    return scene.host.catalog.path(record, "snapshot.json")


def damage(scene: Scene, record: Record, text: str | None) -> None:
    if text is None:
        file_of(scene, record).unlink()
    else:
        file_of(scene, record).write_text(text)


@pytest.mark.parametrize("text", [None, "", '{"schema": 1, "id"', "[]"])
def test_a_record_is_made_anew_beside_its_image(scene: Scene, text: str | None) -> None:
    record = take(scene)
    os.truncate(scene.host.catalog.path(record, "memory.save"), 64 << 20)  # with a hole
    damage(scene, record, text)
    assert rebuild(scene) == []
    back = scene.host.catalog.get(UUID, record.id)
    same = ("id", "set", "kind", "domain", "domain_uuid", "hypervisor", "state", "disks", "named")
    assert {key: getattr(back, key) for key in same} == {key: getattr(record, key) for key in same}
    assert back.memory is not None and back.memory.checksum == ""
    image = scene.host.catalog.path(back, back.memory.file).stat()
    assert (back.memory.size_bytes, back.written_bytes) == (64 << 20, image.st_blocks * 512)
    assert (back.memory_bytes, back.vcpus) == (4 << 20, 3)
    assert [drive.target for drive in back.omitted] == ["sda"]
    age = datetime.fromisoformat(record.created) - datetime.fromisoformat(back.created)
    assert abs(age.total_seconds()) < 5
    kept = file_of(scene, record).with_name("snapshot.json.damaged")
    assert kept.exists() is (text is not None) and (text is None or kept.read_text() == text)
    assert rebuild(scene) == [], "and once is enough"


def test_a_name_that_begins_as_a_time_stamp_is_one_made_anew(scene: Scene) -> None:
    """It counted as unnamed then, and `prune` deleted it."""
    record = take(scene, "20260101T000000Z-nightly", with_memory=False)
    damage(scene, record, None)
    assert rebuild(scene) == []
    assert scene.host.catalog.get(UUID, record.id).named


@pytest.mark.parametrize("with_memory", [True, False])
def test_what_lies_beside_the_image_belongs_to_it(
    scene: Scene, tmp_path: Path, with_memory: bool
) -> None:
    tpm = tmp_path / "tpm2"
    tpm.mkdir()
    nvram = SidePlace(kind=SideKind.NVRAM, path=tmp_path / "demo_VARS.fd")
    scene.machine.places = (nvram, SidePlace(kind=SideKind.TPM, path=tpm, shape=SideShape.FOLDER))
    scene.count(5)
    record = take(scene, with_memory=with_memory)
    damage(scene, record, "")
    (rebuilt,), _ = rebuilding.look(scene.host)
    assert "whether its UEFI variables or vTPM state changed since" in rebuilt.unknown
    assert make_anew(scene, rebuilt) == ""
    assert scene.host.catalog.get(UUID, record.id).side_files == record.side_files != ()
    if not with_memory:
        scene.count(4)
        back = scene.host.catalog.get(UUID, record.id)
        consistency.rollback(scene.host, back, paused=False, progress=Silent())
        assert (nvram.path.read_text(), scene.disk_data()) == ("5", ["5", "5"])


def test_a_side_file_that_cannot_be_read_is_told(scene: Scene) -> None:
    record = take(scene)
    damage(scene, record, None)
    (scene.host.catalog.path(record, "nvram.demo_VARS.fd")).mkdir()
    (why,) = rebuild(scene)
    assert "UEFI variables or vTPM state cannot be read" in why


def test_that_its_file_systems_may_be_frozen_is_told(scene: Scene) -> None:
    full, disks = take(scene, "full"), take(scene, "disks", with_memory=False)
    for record in (full, disks):
        damage(scene, record, "")
    rebuilt, _ = rebuilding.look(scene.host)
    told = {str(each.record.id): "; ".join(each.unknown) for each in rebuilt}
    assert f"frozen (if it hangs after a rollback: virsh domfsthaw {DOMAIN})" in told["full"]
    assert "frozen" not in told["disks"], "a domain that boots is never frozen"


@pytest.mark.parametrize(
    ("number", "format_"),
    [
        (libvirtimage.FORMAT_RAW, imageformats.LIBVIRT_SAVE),
        (libvirtimage.FORMAT_ZSTD, imageformats.LIBVIRT_SAVE),
        (libvirtimage.FORMAT_SPARSE, imageformats.LIBVIRT_SPARSE),
    ],
)
def test_the_format_is_the_one_in_the_image(scene: Scene, number: int, format_: str) -> None:
    record = take(scene)
    path = scene.host.catalog.path(record, "memory.save")
    content = path.read_bytes()
    path.write_bytes(libvirtimage.head_as(path, number).replace(b"Part", b"Save") + content[-14:])
    damage(scene, record, "")
    assert rebuild(scene) == []
    memory = scene.host.catalog.get(UUID, record.id).memory
    assert memory is not None and memory.format == format_


def test_what_an_image_says_that_cannot_be_makes_no_record(scene: Scene) -> None:
    """It was made, could not be read, and was made anew as often as one liked."""
    record = take(scene)
    image = libvirtimage.Writer()
    absurd = XML.replace("<memory>4096<", f"<memory>{10**30}<")
    path = scene.host.catalog.path(record, "memory.save")
    descriptor = image.begin(path, absurd, "")
    os.write(descriptor, b"QEVM and so on")
    os.close(descriptor)
    image.end(path)
    damage(scene, record, "")
    (why,) = rebuild(scene)
    assert "what its image says is not possible: 'memory_bytes' is out of range" in why
    assert file_of(scene, record).read_text() == ""


def test_a_rebuilt_one_is_gone_back_to(scene: Scene) -> None:
    scene.count(5)
    record = take(scene, with_memory=False)
    shutil.rmtree(scene.host.settings.state_dir)
    assert rebuild(scene) == []
    scene.count(4)
    back = scene.host.catalog.get(UUID, record.id)
    assert (back.kind, back.state) == (RecordKind.DISKS, DomainState.SHUTOFF)
    undo = consistency.rollback(scene.host, back, paused=False, progress=Silent()).undo
    assert scene.disk_data() == ["5", "5"]
    shutil.rmtree(scene.host.settings.state_dir)
    assert rebuild(scene) == []
    again = scene.host.catalog.get(UUID, undo.id)
    assert again.kind is RecordKind.UNDO and not again.named
    assert [disk.snapshot.uuid for disk in again.disks] == [d.snapshot.uuid for d in undo.disks]
    consistency.rollback(scene.host, again, paused=False, progress=Silent())
    assert scene.disk_data() == ["9", "9"]


def test_what_is_good_is_never_touched(scene: Scene) -> None:
    record = take(scene)
    before = file_of(scene, record).read_bytes()
    assert rebuilding.look(scene.host) == ((), ())
    another = rebuilding.Rebuilt(record=replace(record, note="another"), unknown=())
    assert "exists already" in make_anew(scene, another)
    newer = json.dumps({"schema": 99}).encode()
    file_of(scene, record).write_bytes(newer)
    assert [why for why in rebuild(scene) if "newer snapvm" in why]
    assert file_of(scene, record).read_bytes() == newer != before


@pytest.mark.parametrize("is_bare", [False, True])
def test_what_was_deleted_since_it_was_chosen_is_not_made(scene: Scene, is_bare: bool) -> None:
    """Another rebuilds it and deletes it, while the first waits for the lock."""
    record = take(scene, with_memory=False)
    if is_bare:
        shutil.rmtree(scene.host.settings.state_dir)
    else:
        damage(scene, record, "")
    (chosen,), _ = rebuilding.look(scene.host)
    assert make_anew(scene, chosen) == ""
    back = scene.host.catalog.get(UUID, record.id)
    consistency.delete(scene.host, [back], Silent())
    assert "its volumes are gone" in make_anew(scene, chosen)
    assert scene.ids() == [] and scene.host.catalog.leftovers(UUID) == ()


def test_what_lost_a_disk_since_it_was_chosen_is_not_made(scene: Scene) -> None:
    record = take(scene)
    damage(scene, record, None)
    (chosen,), _ = rebuilding.look(scene.host)
    scene.lvm.volumes.remove(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    assert "volumes of 1 of its 2 disks are there" in make_anew(scene, chosen)
    assert not file_of(scene, record).exists()


def test_what_was_renamed_since_it_was_chosen_is_made_as_it_is(scene: Scene) -> None:
    record = take(scene, with_memory=False)
    damage(scene, record, "")
    (chosen,), _ = rebuilding.look(scene.host)
    for disk in record.disks:
        scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv).name += "-other"
    assert make_anew(scene, chosen) == ""
    names = {disk.snapshot.lv for disk in scene.host.catalog.get(UUID, record.id).disks}
    assert names == {f"{disk.snapshot.lv}-other" for disk in record.disks}


def test_a_take_that_ends_while_it_is_looked_is_not_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its volumes are named by its journal, or by its record: the one becomes the other."""
    record = take(scene)
    folder = file_of(scene, record).parent
    draft = scene.host.catalog.draft(UUID, record.id).folder
    (folder / "intent.json").write_text(json.dumps({"set": record.set}))
    folder.rename(draft)
    looks: list[object] = []

    def end_after_one(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*args: Any) -> Any:
            found = look(*args)
            found = found if isinstance(found, tuple) else iter(list(found))
            if not looks:
                looks.append(look)
                draft.rename(folder)
            return found

        return looked

    catalog = scene.host.catalog
    for name in ("entries", "leftovers"):
        monkeypatch.setattr(catalog, name, end_after_one(getattr(catalog, name)))
    lost = list(rebuilding._lost_sets(scene.host, scene.host.lvm.report()))
    assert looks and lost == []


def test_what_lacks_a_disk_is_not_made(scene: Scene) -> None:
    record = take(scene)
    damage(scene, record, None)
    scene.lvm.volumes.remove(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    (why,) = rebuild(scene)
    assert "volumes of 1 of its 2 disks are there" in why
    assert not file_of(scene, record).exists()


def test_a_damaged_record_without_volumes_is_told_of(scene: Scene) -> None:
    record = take(scene)
    damage(scene, record, "")
    scene.host.lvm.remove([disk.snapshot for disk in record.disks])
    assert rebuild(scene) == ["none of the volumes that LVM shows is tagged as belonging to it"]


def test_an_image_that_is_not_whole_is_not_believed(scene: Scene) -> None:
    record = take(scene)
    damage(scene, record, None)
    path = scene.host.catalog.path(record, "memory.save")
    path.write_bytes(libvirtimage.PARTIAL + path.read_bytes()[16:])
    (why,) = rebuild(scene)
    assert "it was never written to its end" in why


def test_no_record_is_made_of_what_a_killed_take_left(scene: Scene) -> None:
    record = take(scene, with_memory=False)
    for disk in record.disks:
        volume = scene.lvm.named(disk.snapshot.vg, disk.snapshot.lv)
        volume.tags = volume.tags - {"snapvm.st=ok"} | {"snapvm.st=new"}
    shutil.rmtree(scene.host.settings.state_dir)
    (why,) = rebuild(scene)
    assert "never ended" in why and scene.ids() == []


@given(
    domain=st.sampled_from(("demo", "web 1")) | st.text(max_size=40),
    id_=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9+.-]{0,63}", fullmatch=True),
    target=st.sampled_from(("vda", "xvda1", "hd/a")) | st.text(min_size=1, max_size=8),
    disks=st.integers(1, 99),
)
def test_what_a_tag_says_is_what_it_was_told(
    domain: str, id_: str, target: str, disks: int
) -> None:
    told = Belonging(
        domain_uuid=DomainUuid(UUID),
        domain=domain,
        id=SnapshotId(id_),
        target=target,
        disks=disks,
        created=datetime(2026, 11, 25, 2, 3, 4, tzinfo=UTC),
    )
    tags = belonging.record_tags(told)
    legal = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-/=!:#&")
    assert all(set(tag) <= legal for tag in tags)
    assert bool(tags) is (set(target) <= legal - {"/"}), "none for a target that LVM would refuse"
    known = told if set(domain) <= legal else replace(told, domain="")
    assert belonging.read(["snapvm=1", *tags]) == (known if tags else None)


def test_a_record_is_made_anew_beside_a_copy_of_its_group(scene: Scene) -> None:
    record = take(scene, with_memory=False)
    scene.lvm.import_copy("vg0", "copy")
    damage(scene, record, None)
    assert rebuild(scene) == []
    assert scene.host.catalog.get(UUID, record.id).disks == record.disks
