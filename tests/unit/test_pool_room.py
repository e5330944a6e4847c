"""Room in pools and groups: what LVM would refuse is refused before the domain stands still."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import checking, consistency, diagnosis
from snapvm.failures import SnapshotFailed
from snapvm.model import DomainState, GuestDisk, Record, Silent
from snapvm.refusals import VolumeRefused
from tests.fakes.scene import DOMAIN, Scene, make_scene
from tests.unit.deeds import advice, begun, delete, roll_back, take


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


@pytest.mark.parametrize(
    ("what", "option", "percent"), [("data", "size", 90), ("metadata", "poolmetadatasize", 80)]
)
def test_what_is_full_is_what_is_to_be_extended(
    tmp_path: Path, what: str, option: str, percent: float
) -> None:
    """`lvextend` of a pool with a --size leaves its metadata as full as it was."""
    scene = make_scene(tmp_path)
    setattr(scene.lvm.named("vg1", "pool"), f"{what}_percent", percent - 1.0)
    extending = f"extend it (lvextend --{option} +SIZE vg1/pool)"
    assert [text for text in advice(scene) if extending in text], advice(scene)
    setattr(scene.lvm.named("vg1", "pool"), f"{what}_percent", percent + 1.0)
    with pytest.raises(VolumeRefused) as refused:
        take(scene, "x")
    assert refused.value.hint() == (
        f"{extending}, delete snapshots, or raise `pool_{what}_limit_percent` in the settings"
    )


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
        consistency.plan_rollback(scene.host, record, Silent())
    assert "window" not in deeds


def refused_before_the_window(scene: Scene, record: Record) -> VolumeRefused:
    """Return why no snapshot is made, nor gone back to; the domain has not stood still for it."""
    deeds: list[str] = []
    scene.hypervisor.before = deeds.append
    names = scene.lvm.names()
    with pytest.raises(VolumeRefused):
        roll_back(scene, record)
    with pytest.raises(VolumeRefused) as refused:
        take(scene, "y")
    assert "window" not in deeds and "freeze" not in deeds
    assert scene.lvm.names() == names and scene.ids() == [record.id]
    return refused.value


@pytest.mark.parametrize(
    ("health", "why", "hint"),
    [
        ("failed", "has failed", "lvconvert --repair vg1/pool"),
        ("metadata_read_only", "metadata is read-only", "lvconvert --repair vg1/pool"),
        ("out_of_data", "out of data space", "lvextend --size +SIZE vg1/pool"),
        ("check_needed", "needs thin_check", "lvconvert --repair vg1/pool"),
    ],
)
def test_a_domain_does_not_stand_still_for_a_pool_in_trouble(
    tmp_path: Path, health: str, why: str, hint: str
) -> None:
    scene, record = begun(tmp_path)
    scene.lvm.named("vg1", "pool").health = health
    refused = refused_before_the_window(scene, record)
    assert why in refused.why and hint in refused.hint()


@pytest.mark.parametrize("health", ["failed", "metadata_read_only", "check_needed"])
def test_nothing_is_removed_from_a_pool_that_takes_no_orders(tmp_path: Path, health: str) -> None:
    """LVM forgets the volume, and then fails to tell the pool: their transactions differ then."""
    scene, record = begun(tmp_path)
    names = scene.lvm.names()
    scene.lvm.named("vg1", "pool").health = health
    with pytest.raises(VolumeRefused, match="nothing can be removed from vg1/pool") as refused:
        delete(scene, record)
    assert "lvconvert --repair vg1/pool" in refused.value.hint()
    with pytest.raises(VolumeRefused, match="nothing can be removed from vg1/pool"):
        consistency.prune(scene.host, [[record]], Silent())
    assert scene.lvm.names() == names and scene.ids() == [record.id]


def test_a_pool_that_is_out_of_space_is_helped_by_a_removal(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    pool = scene.lvm.named("vg1", "pool")
    pool.health, pool.data_percent = "out_of_data", 100.0
    delete(scene, record)
    assert not scene.ids()


@pytest.mark.parametrize("thick", [(), ("vg0", "vg1")], ids=["thin", "thick"])
def test_a_group_that_may_have_no_more_volumes_is_told_before_the_window(
    tmp_path: Path, thick: tuple[str, ...]
) -> None:
    scene, record = begun(tmp_path, *thick)
    scene.lvm.max_volumes = 3
    refused = refused_before_the_window(scene, record)
    assert "volume group vg0 is limited in its volumes (max_lv): 0 more" in refused.why
    assert "vgchange --logicalvolume 0 vg0" in refused.hint()
    scene.lvm.max_volumes = 4
    take(scene, "y")


def test_doctor_counts_the_disks_of_a_group_together(tmp_path: Path) -> None:
    """A group with room for one volume more was well for each of two disks, but for no take."""
    scene = make_scene(tmp_path)
    scene.lvm.add_disk("vg0", "demo-d2").opened = True
    second = GuestDisk(target="vdc", device=Path("/dev/vg0/demo-d2"))
    scene.machine.disks += (second,)
    scene.lvm.max_volumes = 4
    with pytest.raises(VolumeRefused, match="1 more allowed, 2 needed"):
        take(scene, "x")
    (told,) = diagnosis.look(scene.host, DOMAIN).refusals
    assert "1 more allowed, 2 needed" in str(told)


def test_a_pool_that_pvmove_moves_is_told_before_the_window(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    pool = scene.lvm.named("vg1", "pool")
    pool.moving = True
    refused = refused_before_the_window(scene, record)
    assert refused.volume == "vg1/pool" and "moving it (pvmove)" in refused.why
    pool.moving = False
    roll_back(scene, record)


def test_a_pool_that_is_not_active_is_called_so(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    scene.lvm.named("vg0", "pool").active = False
    refused = refused_before_the_window(scene, record)
    assert "lvchange -ay vg0/pool" in refused.hint()
    assert checking.look(scene.host, None, Silent(), deep=False) == ()


def test_lvm_is_asked_for_its_threshold_only_where_a_pool_may_be_above_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    scene.lvm.conf["activation/thin_pool_autoextend_threshold"] = "70"
    asked: list[str] = []
    scene.lvm.before = lambda argv: asked.append(argv[1])
    take(scene, "x")
    assert "lvmconfig" not in asked


def test_a_pool_may_have_a_threshold_of_its_own(tmp_path: Path) -> None:
    """As lvmthin(7) has it done: it is in a profile, and not in lvm.conf."""
    scene, record = begun(tmp_path)
    scene.lvm.profiles["tight"] = {"activation/thin_pool_autoextend_threshold": "70"}
    scene.lvm.profiles["loose"] = {"activation/thin_pool_autoextend_threshold": "100"}
    scene.lvm.conf["activation/thin_pool_autoextend_threshold"] = "75"
    pool = scene.lvm.named("vg1", "pool")
    pool.data_percent, pool.profile = 72.0, "tight"
    refused = refused_before_the_window(scene, record)
    assert "above 70 % (profile tight" in refused.why
    pool.data_percent, pool.profile = 78.0, "loose"
    take(scene, "y")


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


def test_a_pool_that_is_nearly_too_full_is_told_of(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    assert advice(scene) == ()
    scene.lvm.named("vg1", "pool").data_percent = 85.0
    (told,) = advice(scene)
    assert "data of pool vg1/pool is 85 % full" in told and "above 90 %" in told
    scene.lvm.named("vg1", "pool").data_percent = 95.0
    assert advice(scene) == (), "it is refused"


@pytest.mark.parametrize(
    ("fill", "option"), [("data_percent", "--size"), ("metadata_percent", "--poolmetadatasize")]
)
def test_what_to_do_about_a_full_pool_is_said_once_for_all_its_disks(
    tmp_path: Path, fill: str, option: str
) -> None:
    """It was to be repaired, for each of its disks anew."""
    scene = make_scene(tmp_path)
    more = scene.lvm.add_disk("vg0", "more", pool="pool")
    more.opened = True
    scene.machine.held.append(more)
    scene.machine.disks += (GuestDisk(target="vdc", device=Path("/dev/vg0/more")),)
    setattr(scene.lvm.named("vg0", "pool"), fill, 100.0)
    (refused,) = diagnosis.look(scene.host, DOMAIN).refusals
    assert f"lvextend {option} +SIZE vg0/pool" in refused.hint()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"data_percent": 99.0}, "its data is 99.0 % full"),
        ({"health": "metadata_read_only"}, "the thin pool's metadata is read-only"),
        ({"data_percent": 10.0}, None),
    ],
)
def test_a_pool_of_which_volumes_alone_were_activated_is_told_of(
    tmp_path: Path, state: dict[str, object], said: str | None
) -> None:
    """LVM calls such a pool inactive (auto_activation_volume_list, pacemaker), and it fills up."""
    scene = make_scene(tmp_path)
    take(scene, "x")
    pool = scene.lvm.named("vg0", "pool")
    pool.active, pool.is_layered = False, True
    for name, value in state.items():
        setattr(pool, name, value)
    found = checking.look(scene.host, None, Silent(), deep=False)
    told = [(each.subject, each.problem.partition(",")[0]) for each in found]
    assert told == [("vg0/pool", said)] * bool(said)
