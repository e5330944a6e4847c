"""What nothing names: some of it is left over and goes, some only looks like it and stays."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from snapvm import checking, consistency, hostid, orphans, rebuilding, repair, swapping, taking
from snapvm.attention import JournalUnusable
from snapvm.catalog import Catalog
from snapvm.checking import Finding
from snapvm.consistency import TakeRequest
from snapvm.host import Host
from snapvm.lvm import belonging
from snapvm.model import Progress, Record, Silent
from snapvm.planning import TakePlan
from snapvm.taking import Caught
from tests.fakes import mortal
from tests.fakes.scene import DOMAIN, UUID, Scene, make_scene
from tests.unit.deeds import begun, roll_back, take


def kill_rollback(scene: Scene, record: Record, point: str) -> Path:
    """Kill a rollback at a point, before its bookkeeping is begun; return its journal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swapping, "settle", lambda *_: Event().wait())
        assert mortal.kill_at(scene, lambda dying: roll_back(dying, record), point)
    return scene.host.catalog.folder(UUID, record.id).with_name(".rollback.json")


def look(host: Host) -> dict[str, Finding]:
    found = checking.look(host, None, Silent(), deep=False)
    return {finding.subject: finding for finding in found}


def remove_all(host: Host) -> None:
    """Do what `repair` and `check --fix` do."""
    consistency.repair_all(host, None, Silent())
    orphans.remove(host, [found.orphan for found in look(host).values() if found.orphan], [])


def elsewhere(scene: Scene, name: str = "elsewhere") -> Host:
    """Return the host with another state folder, and the same locks."""
    state = scene.host.settings.state_dir.with_name(name)
    return replace(scene.host, catalog=Catalog(state, scene.host.settings.run_dir))


def untag(scene: Scene) -> None:
    """Make all volumes such as an older snapvm made them: they do not say whose they are."""
    for volume in scene.lvm.volumes:
        volume.tags = {tag for tag in volume.tags if not tag.startswith("snapvm.of=")}


@pytest.mark.parametrize("age", [lambda _scene: None, untag], ids=["new", "old"])
def test_a_clone_that_has_the_name_of_a_disk_is_the_disk(
    tmp_path: Path, age: Callable[[Scene], None]
) -> None:
    """Its rollback's journal is damaged and is moved away, as the hint says; nothing is lost."""
    scene, record = begun(tmp_path)
    journal = kill_rollback(scene, record, "after restore 1")
    age(scene)
    journal.write_text("{")
    with pytest.raises(JournalUnusable) as told:
        consistency.repair_all(scene.host, None, Silent())
    assert "--fix" not in told.value.hint() and "snapvm check" in told.value.hint()
    journal.unlink()
    scene.count(2)
    scene.hypervisor.stop(scene.hypervisor.find(DOMAIN))
    remove_all(scene.host)
    assert scene.disk_data() == ["7", "7"]
    findings = look(scene.host)
    assert set(findings) == {"vg0/demo-d0", "vg1/demo-d1"}
    for finding in findings.values():
        assert "it is a disk" in finding.problem
        command = finding.remedy.partition("tags from it: ")[2]
        scene.lvm.obey(("lvm", *shlex.split(command)))
    assert look(scene.host) == {}
    assert not {tag for i in (0, 1) for tag in scene.lvm.named(f"vg{i}", f"demo-d{i}").tags}


def test_what_a_thick_disk_was_before_a_lost_rollback_stays(tmp_path: Path) -> None:
    """The disk may be half written back, and then it is nowhere else."""
    scene, record = begun(tmp_path, "vg0", "vg1")
    kill_rollback(scene, record, "after copy back 1").unlink()
    assert scene.disk_data() == ["5", "8"]
    before = scene.lvm.names()
    remove_all(scene.host)
    assert scene.lvm.names() == before
    findings = look(scene.host)
    assert len(findings) == 2
    assert all("was before a rollback" in found.problem for found in findings.values())


@pytest.mark.parametrize("age", [lambda _scene: None, untag], ids=["new", "old"])
def test_a_state_folder_that_is_not_mounted_costs_nothing(
    scene: Scene, age: Callable[[Scene], None]
) -> None:
    """Its rollback is past its point of no return; when the folder is there again it goes on."""
    scene.count(5)
    record = take(scene)
    scene.count(3)
    journal = kill_rollback(scene, record, "after stop 1")
    age(scene)
    before = scene.lvm.names()
    other = elsewhere(scene)
    remove_all(other)
    assert scene.lvm.names() == before
    findings = look(other)
    assert len(findings) == 4
    for finding in findings.values():
        assert "does not know its domain" in finding.problem and "--state-dir" in finding.remedy
    for disk in {"vg0/demo-d0", "vg1/demo-d1"} & findings.keys():
        assert "lvremove" not in findings[disk].remedy, "it is the only one that the domain has"
        assert "it has the name of a disk" in findings[disk].remedy
    assert journal.exists()
    consistency.repair_all(scene.host, None, Silent())
    assert scene.disk_data() == ["5", "5"]
    assert look(scene.host) == {}


def test_volumes_of_a_domain_of_another_state_folder_are_not_orphans(scene: Scene) -> None:
    take(scene)
    before = scene.lvm.names()
    other = elsewhere(scene)
    there = UUID.replace("1", "2")
    (scene.host.settings.state_dir.with_name("elsewhere") / "domains" / there).mkdir(parents=True)
    assert other.catalog.domains()
    remove_all(other)
    assert scene.lvm.names() == before and len(look(other)) == 2


def test_what_is_worked_on_from_another_state_folder_is_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both know the domain; the one that works on it holds its lock, which they share."""
    other = elsewhere(scene)
    consistency.take(other, TakeRequest(domain=DOMAIN, name="theirs"), Silent())
    sealed = taking.sealed
    seen = []

    def meanwhile(plan: TakePlan, folder: Path, caught: Caught, progress: Progress) -> Caught:
        left = orphans.of(other, other.lvm.report())
        seen.append((len(left), repair.remove_orphans(other, []), orphans.remove(other, left, [])))
        return sealed(plan, folder, caught, progress)

    monkeypatch.setattr(taking, "sealed", meanwhile)
    record = take(scene, "ours")
    assert seen == [(2, (), ())]
    assert scene.lvm.names() >= {str(disk.snapshot) for disk in record.disks}


def test_a_disk_that_was_a_clone_carries_no_tag_of_ours(scene: Scene) -> None:
    """Nor the one that says whose it was."""
    record = take(scene)
    roll_back(scene, record)
    for i in (0, 1):
        assert scene.lvm.named(f"vg{i}", f"demo-d{i}").tags == set()


def test_a_rollback_that_an_older_snapvm_left_is_finished(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    record = take(scene)
    kill_rollback(scene, record, "after restore 1")
    clone = scene.lvm.named("vg0", "demo-d0")
    whose = belonging.read(clone.tags)
    assert whose is not None and whose.domain_uuid == UUID
    untag(scene)
    consistency.repair_all(scene.host, None, Silent())
    assert scene.host.catalog.leftovers(UUID) == () and look(scene.host) == {}
    assert clone.tags == set()


def test_what_another_host_has_made_is_no_orphan_here(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the group, each has a state folder, and the domain was migrated: both know it."""
    machine_id = tmp_path / "machine-id"
    monkeypatch.setattr(hostid, "PATH", machine_id)
    machine_id.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    here = take(scene, "here")
    kill_rollback(scene, here, "after suspend 1")
    names = scene.lvm.names()
    machine_id.write_text("e1219c7c4c5404aaa1f6d2a48adfda43\n")
    there = elsewhere(scene)
    consistency.take(there, TakeRequest(domain=DOMAIN, name="there"), Silent())
    scene.hypervisor.stop(scene.hypervisor.find(DOMAIN))
    remove_all(there)
    assert names <= scene.lvm.names()
    findings = look(there)
    assert len(findings) == 4
    for finding in findings.values():
        assert "another host" in finding.problem and finding.orphan is None
    # That host may have been this one, before it was installed anew.
    backs = [finding.remedy for finding in findings.values() if "catalog rebuild" in finding.remedy]
    assert len(backs) == 2 and all("tells if here of its domain" in back for back in backs)
    rebuilt, _ = rebuilding.look(there)
    assert [(each.record.id, each.unknown[-1]) for each in rebuilt] == [
        ("here", "whether the catalog of the host that made it has it too")
    ]
    machine_id.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    consistency.repair_all(scene.host, None, Silent())
    roll_back(scene, here)
    assert not [tag for i in (0, 1) for tag in scene.lvm.named(f"vg{i}", f"demo-d{i}").tags]


@pytest.mark.parametrize("tag", ["snapvm=1", "snapvm=yes", "snapvm-nightly", "snapvm"])
def test_a_tag_of_a_user_s_own_is_none_of_ours(scene: Scene, tag: str) -> None:
    """Such as by which somebody marks the disks that are to be captured."""
    disk = scene.lvm.named("vg0", "demo-d0")
    disk.tags = {tag, "theirs"}
    record = take(scene)
    roll_back(scene, record)
    kept = {tag, "theirs"} - {"snapvm=1"}
    assert kept <= scene.lvm.named("vg0", "demo-d0").tags
    disk = scene.lvm.add_disk("vg0", "other", pool="", data="precious")
    disk.tags = {tag}
    remove_all(scene.host)
    assert disk in scene.lvm.volumes and look(scene.host) == {}


@pytest.mark.parametrize("pool", ["", "theirs"], ids=["snapshot", "overlay"])
def test_an_orphan_stays_below_what_somebody_has_built_upon_it(scene: Scene, pool: str) -> None:
    """LVM removes that with it, and asks nobody who has said yes to everything."""
    record = take(scene, "x")
    take(scene, "y")
    shutil.rmtree(scene.host.catalog.path(record, ""))
    below = record.disks[0].snapshot
    theirs = scene.lvm.add_disk(below.vg, "theirs", pool=pool, data="precious")
    theirs.origin, theirs.origin_bytes = below.lv, 1 << 26
    found = look(scene.host)
    assert found["vg1/demo-d1.x"].orphan is not None
    told = found[str(below)]
    assert told.orphan is None and "vg0/theirs" in told.problem
    assert "lvremove vg0/theirs" in told.remedy
    remove_all(scene.host)
    assert theirs in scene.lvm.volumes and str(below) in scene.lvm.names()
    assert "vg1/demo-d1.x" not in scene.lvm.names()


def test_a_snapshot_whose_record_is_lost_is_not_removed_by_repair(scene: Scene) -> None:
    """It is whole, and `catalog rebuild` has its record back; who wants it gone says `--fix`."""
    record = take(scene, "x")
    names = scene.lvm.names()
    shutil.rmtree(scene.host.catalog.path(record, ""))
    assert consistency.repair_all(scene.host, None, Silent()) == ()
    assert scene.lvm.names() == names
    rebuilt, hopeless = rebuilding.look(scene.host)
    assert [each.record.id for each in rebuilt] == ["x"] and hopeless == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("x/snapshot.json", "{"), ("x/snapshot.json", '{"schema": 99}'), (".rollback.json", "{")],
)
def test_nothing_is_left_over_while_what_may_name_it_cannot_be_read(
    scene: Scene, name: str, text: str
) -> None:
    """The volumes of a snapshot whose record is damaged would go, and those of a rollback."""
    record = take(scene, "x")
    shutil.rmtree(scene.host.catalog.path(take(scene, "y"), ""))
    spoilt = scene.host.catalog.folder(UUID, record.id).parent / name
    was = spoilt.read_text() if spoilt.exists() else None
    spoilt.write_text(text)
    names = scene.lvm.names()
    assert orphans.strays(scene.host, scene.host.lvm.report()) == ()
    with suppress(JournalUnusable):
        remove_all(scene.host)
    assert scene.lvm.names() == names
    spoilt.unlink() if was is None else spoilt.write_text(was)
    remove_all(scene.host)
    assert names - scene.lvm.names() == {"vg0/demo-d0.y", "vg1/demo-d1.y"}


@pytest.mark.parametrize("how", ["moving", "merging", "opened"])
def test_an_orphan_that_lvm_does_not_remove_now_keeps_no_other(scene: Scene, how: str) -> None:
    """`check --fix` ended with what LVM said of it, and told of nothing that it had found."""
    record = take(scene, "x")
    take(scene, "y")
    shutil.rmtree(scene.host.catalog.path(record, ""))
    held = record.disks[0].snapshot
    setattr(scene.lvm.named(held.vg, held.lv), how, True)
    found = look(scene.host)[str(held)]
    assert found.orphan is None and found.problem.count("belongs to no snapshot") == 1
    remove_all(scene.host)
    assert "vg1/demo-d1.x" not in scene.lvm.names()
    assert set(look(scene.host)) == {str(held)}
    setattr(scene.lvm.named(held.vg, held.lv), how, False)
    remove_all(scene.host)
    assert look(scene.host) == {}
