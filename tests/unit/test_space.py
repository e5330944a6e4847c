"""Space that must not surprise: chunks, siblings, pools, and what may be deleted; on fakes."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import replace
from os import ST_RDONLY
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapvm import checking, consistency, cowsize, diagnosis
from snapvm.failures import SnapshotFailed
from snapvm.model import DomainState, Record, Silent
from snapvm.refusals import HostLacks, NoSpace, VolumeRefused
from tests.fakes.lvmvolume import FakeVolume
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.unit.deeds import begun, roll_back, take

LARGE = 512 << 10


@pytest.fixture
def thick(tmp_path: Path) -> Scene:
    return make_scene(tmp_path, thick=("vg0", "vg1"))


def with_settings(scene: Scene, **changes: object) -> Scene:
    settings = replace(scene.host.settings, **changes)  # type: ignore[arg-type]
    return replace(scene, host=replace(scene.host, settings=settings))


def test_a_disk_keeps_to_the_chunks_it_has_begun_with(thick: Scene) -> None:
    take(thick, "first")
    other = with_settings(thick, cow_chunk=LARGE)
    take(other, "second")
    chunks = {volume.chunk_bytes for volume in thick.lvm.volumes if volume.origin}
    assert chunks == {cowsize.DEFAULT_CHUNK_BYTES}
    records = [thick.host.catalog.get(record.domain_uuid, record.id) for record in entries(thick)]
    consistency.delete(thick.host, records, Silent())
    take(other, "third")
    assert {volume.chunk_bytes for volume in thick.lvm.volumes if volume.origin} == {LARGE}


def test_a_state_folder_that_is_read_only_is_told_before_anything(
    thick: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`doctor` saw nothing in the way; a rollback then said that `repair` was needed."""
    record = take(thick, "x")
    statvfs = os.statvfs

    def read_only(path: Path) -> SimpleNamespace:
        found = statvfs(path)
        names = ("f_bavail", "f_frsize", "f_blocks")
        return SimpleNamespace(**{name: getattr(found, name) for name in names}, f_flag=ST_RDONLY)

    monkeypatch.setattr(os, "statvfs", read_only)
    before = thick.lvm.names()
    (refusal,) = diagnosis.look(thick.host, DOMAIN).refusals
    assert "can be written to" in str(refusal) and "is read-only" in str(refusal)
    for deed in (lambda: take(thick, "y"), lambda: roll_back(thick, record)):
        with pytest.raises(HostLacks, match="is read-only"):
            deed()
    assert thick.lvm.names() == before and thick.ids() == ["x"]


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({"f_bfree": 3}, "4 MiB for what is written down needed, 12 KiB"),
        ({"f_ffree": 2}, "16 files"),
    ],
)
def test_a_state_folder_without_room_for_a_journal_is_told_before_anything(
    thick: Scene, monkeypatch: pytest.MonkeyPatch, left: dict[str, int], told: str
) -> None:
    """The domain had ended, its memory was lost, and it stayed off: how far it was had no room."""
    record = take(thick, "x")
    status = SimpleNamespace(
        f_bavail=1 << 20, f_bfree=1 << 20, f_blocks=1 << 30, f_frsize=4096, f_files=9, f_ffree=99
    )
    status.__dict__.update(left, f_flag=0)
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    (refusal,) = diagnosis.look(thick.host, DOMAIN).refusals
    assert told in str(refusal)
    for deed in (lambda: take(thick, "y"), lambda: roll_back(thick, record)):
        with pytest.raises(NoSpace, match=told):
            deed()
    assert thick.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


def test_a_state_folder_that_is_filled_meanwhile_does_not_cost_the_memory(
    thick: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large image is read for minutes before the domain ends."""
    record = take(thick, "x")
    before, statvfs = thick.lvm.names(), os.statvfs
    full = SimpleNamespace(f_bfree=0, f_frsize=4096, f_files=0, f_flag=0)

    def fill(deed: str) -> None:
        if deed == "freeze":
            monkeypatch.setattr(os, "statvfs", lambda _path: full)

    thick.hypervisor.before = fill
    thick.count(5)
    with pytest.raises(NoSpace):
        roll_back(thick, record)
    monkeypatch.setattr(os, "statvfs", statvfs)
    assert thick.lvm.names() == before and thick.ids() == ["x"]
    assert thick.hypervisor.state_of(DOMAIN) is DomainState.RUNNING and thick.machine.count == 5


@pytest.mark.parametrize("files", [0, 99])
def test_a_file_system_need_not_count_its_files(
    thick: Scene, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    status = SimpleNamespace(f_frsize=4096, f_files=files, f_ffree=files, f_flag=0)
    status.f_bavail = status.f_bfree = status.f_blocks = 1 << 20
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    assert diagnosis.look(thick.host, DOMAIN).refusals == []


def entries(scene: Scene) -> list[Record]:
    return [entry for entry in scene.host.catalog.entries() if isinstance(entry, Record)]


@pytest.mark.parametrize(("chunk", "is_refused"), [(64 << 10, False), (LARGE, True)])
def test_a_sibling_with_larger_chunks_needs_more_room(
    thick: Scene, chunk: int, is_refused: bool
) -> None:
    """Ten percent of the chosen one's small chunks may be eight times that in its own."""
    record = take(thick, "chosen")
    sibling = thick.lvm.add_disk("vg0", "theirs", pool="")
    sibling.origin, sibling.origin_bytes = "demo-d0", 1 << 26
    sibling.size_bytes, sibling.chunk_bytes, sibling.data_percent = 32 << 20, chunk, 20.0
    if is_refused:
        with pytest.raises(VolumeRefused, match="vg0/theirs"):
            consistency.plan_rollback(thick.host, record)
    else:
        consistency.plan_rollback(thick.host, record)


@pytest.mark.parametrize("stage", ["window", "drain"])
def test_a_pool_that_runs_full_gives_the_domain_its_blocks_back(tmp_path: Path, stage: str) -> None:
    scene = make_scene(tmp_path)
    before = scene.lvm.names()

    def fill(deed: str) -> None:
        if deed == stage:
            scene.lvm.named("vg1", "pool").data_percent = 100.0

    scene.hypervisor.before = fill
    with pytest.raises(SnapshotFailed, match=r"vg1/pool.*100.0 % full"):
        take(scene, "x")
    assert scene.lvm.names() == before and scene.ids() == []
    assert scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING


@pytest.mark.parametrize(
    ("metadata_bytes", "percent", "ceiling"),
    [(4 << 20, 76.0, "75 %"), (16 << 20, 75.0, "75 %"), (18 << 20, 78.0, "77.78 %")],
)
def test_a_domain_does_not_stand_still_for_what_lvm_refuses(
    tmp_path: Path, metadata_bytes: int, percent: float, ceiling: str
) -> None:
    scene = make_scene(tmp_path)
    pool = scene.lvm.named("vg1", "pool")
    pool.metadata_bytes, pool.metadata_percent = metadata_bytes, percent
    deeds: list[str] = []
    scene.hypervisor.before = deeds.append
    with pytest.raises(VolumeRefused, match=f"metadata .* from {ceiling} on") as refused:
        take(scene, "x")
    megabytes = metadata_bytes >> 20
    assert f"lvextend --poolmetadatasize +{megabytes}M vg1/pool" in refused.value.hint()
    assert "window" not in deeds


@pytest.mark.parametrize("what", ["data", "metadata"])
def test_a_domain_does_not_stand_still_for_a_pool_that_was_not_extended(
    tmp_path: Path, what: str
) -> None:
    scene = make_scene(tmp_path)
    scene.lvm.conf["activation/thin_pool_autoextend_threshold"] = "70"
    setattr(scene.lvm.named("vg1", "pool"), f"{what}_percent", 70.0)
    record = take(scene, "at")
    setattr(scene.lvm.named("vg1", "pool"), f"{what}_percent", 71.0)
    deeds: list[str] = []
    scene.hypervisor.before = deeds.append
    with pytest.raises(VolumeRefused, match=f"its {what} is 71.0 % full, .* above 70 %") as refused:
        take(scene, "x")
    assert "lvextend --use-policies vg1/pool" in refused.value.hint()
    with pytest.raises(VolumeRefused):
        consistency.plan_rollback(scene.host, record)
    assert "window" not in deeds


def test_lvm_is_asked_for_its_threshold_only_where_a_pool_may_be_above_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    scene.lvm.conf["activation/thin_pool_autoextend_threshold"] = "70"
    asked: list[str] = []
    scene.lvm.before = lambda argv: asked.append(argv[1])
    take(scene, "x")
    pool = scene.lvm.named("vg1", "pool")
    pool.data_percent, pool.profile = 80.0, "theirs"
    with pytest.raises(SnapshotFailed):  # the fake has no profiles: it refuses where lvm may not
        take(scene, "y")
    assert "lvmconfig" not in asked


def test_a_pool_that_lvm_still_adds_to_is_not_refused(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    pool = scene.lvm.named("vg1", "pool")
    pool.metadata_bytes, pool.metadata_percent = 16 << 20, 74.0
    take(scene, "x")
    found = diagnosis.look(scene.host, DOMAIN)
    (said,) = diagnosis.advice(found, scene.host.settings)
    assert "metadata of pool vg1/pool is 74 % full, and above 75 %" in said


def test_it_is_the_pool_of_the_snapshot_that_has_to_bear_a_rollback(tmp_path: Path) -> None:
    """The disk was moved to a pool of its own, and what comes back is made in the former one."""
    scene, record = begun(tmp_path)
    former = scene.lvm.named("vg1", "demo-d1")
    former.name = "demo-d1.moved"
    scene.lvm.add_pool("vg1", "fast").data_percent = 97.0
    now = scene.lvm.add_disk("vg1", "demo-d1", pool="fast", data="8")
    scene.machine.held[1] = now
    former.opened, now.opened = False, True
    pool = scene.lvm.named("vg1", "pool")
    pool.data_percent = 97.0
    names = scene.lvm.names()
    with pytest.raises(VolumeRefused) as refused:
        roll_back(scene, record)
    assert refused.value.volume == "vg1/pool" and "97.0 % full" in refused.value.why
    assert scene.lvm.names() == names and scene.ids() == [record.id]
    pool.data_percent = 50.0
    roll_back(scene, record)
    assert scene.machine.count == 5 and scene.disk_data() == ["5", "5"]


def test_what_has_snapshots_of_its_own_is_not_deleted_below_them(tmp_path: Path) -> None:
    """LVM would remove them with it."""
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    volume = record.disks[0].snapshot
    theirs = scene.lvm.add_disk(volume.vg, "theirs", pool="")
    theirs.origin, theirs.origin_bytes = volume.lv, 1 << 26
    with pytest.raises(VolumeRefused, match=r"vg0/theirs.*need"):
        consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == ["x"]


def test_what_another_record_names_is_not_deleted(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    scene.host.catalog.put(replace(record, id="copy", memory=None), tmp_path / "none")  # type: ignore[arg-type]
    with pytest.raises(VolumeRefused, match="demo@copy"):
        consistency.delete(scene.host, [record], Silent())
    assert sorted(scene.ids()) == ["copy", "x"]
    both = [scene.host.catalog.get(record.domain_uuid, id_) for id_ in scene.ids()]  # type: ignore[arg-type]
    consistency.delete(scene.host, both, Silent())
    assert scene.ids() == []


def test_a_volume_that_is_a_disk_again_is_not_deleted(tmp_path: Path) -> None:
    """Somebody gave a former disk its name back by hand; nothing has it open."""
    scene = make_scene(tmp_path, state=DomainState.SHUTOFF)
    record = take(scene, "x")
    undo = consistency.rollback(scene.host, record, paused=False, progress=Silent()).undo
    former = undo.disks[0].snapshot
    scene.lvm.named("vg0", "demo-d0").name = "aside"
    scene.lvm.named(former.vg, former.lv).name = "demo-d0"
    with pytest.raises(VolumeRefused, match="vg0/demo-d0"):
        consistency.delete(scene.host, [undo], Silent())
    assert undo.id in scene.ids()


def take_into_use(scene: Scene, record: Record) -> FakeVolume:
    """Make a disk of a snapshot by hand, for a domain that is off."""
    kept = record.disks[0].snapshot
    volume = scene.lvm.named(kept.vg, kept.lv)
    volume.name, volume.writable, volume.data = "other-d0", True, "precious"
    return volume


def test_a_snapshot_that_somebody_made_a_disk_of_is_not_deleted(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    theirs = take_into_use(scene, record)
    with pytest.raises(VolumeRefused, match="vg0/other-d0") as refused:
        consistency.delete(scene.host, [record], Silent())
    with pytest.raises(VolumeRefused):
        consistency.prune(scene.host, [[record]], Silent())
    assert scene.ids() == ["x"] and theirs in scene.lvm.volumes
    command = refused.value.hint().partition("tags off it: ")[2].partition(";")[0]
    scene.lvm.run(("lvm", *shlex.split(command)))
    consistency.delete(scene.host, [record], Silent())
    assert scene.ids() == [] and theirs in scene.lvm.volumes
    assert "vg1/demo-d1.x" not in scene.lvm.names()


def test_nor_is_it_an_orphan_when_its_record_is_lost(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene, "x")
    take(scene, "y")
    theirs = take_into_use(scene, record)
    shutil.rmtree(scene.host.catalog.path(record, ""))
    found = {f.subject: f for f in checking.look(scene.host, None, Silent(), deep=False)}
    assert found["vg1/demo-d1.x"].orphan is not None
    told = found["vg0/other-d0"]
    assert told.orphan is None and "writable" in told.problem
    command = told.remedy.partition("tags off it: ")[2].partition(";")[0]
    scene.lvm.run(("lvm", *shlex.split(command)))
    assert not theirs.tags


def advice(scene: Scene) -> tuple[str, ...]:
    return diagnosis.advice(diagnosis.look(scene.host, DOMAIN), scene.host.settings)


def test_many_thick_snapshots_are_advised_against(thick: Scene) -> None:
    for number in range(4):
        take(thick, f"s{number}")
    assert advice(thick) == ()
    take(thick, "s4")
    vda, vdb = advice(thick)
    assert vda.startswith("vda has 5 thick snapshots") and vdb.startswith("vdb has 5")
    assert "snapvm prune" in vda and "thin pool" in vda


def test_a_pool_that_is_nearly_too_full_is_told_of(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    assert advice(scene) == ()
    scene.lvm.named("vg1", "pool").data_percent = 85.0
    (told,) = advice(scene)
    assert "data of pool vg1/pool is 85 % full" in told and "above 90 %" in told


def test_so_much_of_a_group_stays_free_as_was_asked(thick: Scene) -> None:
    thick.lvm.vg_free_bytes = 1 << 31
    take(with_settings(thick, group_limit_percent=88.0), "fits")
    with pytest.raises(NoSpace, match=r"vg0 \(at most .* full.*\): 68 MiB .* 0 MiB free"):
        take(with_settings(thick, group_limit_percent=87.5 - 0.005), "not")
    assert thick.ids() == ["fits"]


def test_so_much_of_the_file_system_stays_free_as_was_asked(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    with pytest.raises(NoSpace, match="image_limit_percent"):
        take(with_settings(scene, image_limit_percent=0.001), "x")
    assert scene.ids() == [] and scene.hypervisor.state_of(DOMAIN) is DomainState.RUNNING
