"""``snapvm check`` finds what is not in order; ``catalog rebuild`` and ``--fix`` mend it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snapvm.catalog import Catalog
from snapvm.errors import ExitStatus, Locked
from snapvm.failures import CommandFailed
from snapvm.model import DomainUuid, Record, SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.cli.harms import (
    change_image,
    fill_pool,
    leave_work,
    lose_volume,
    open_volume_to_writes,
    shorten_image,
    spoil_record,
)


def test_a_host_in_order_is_told_as_one(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    call("rollback", "demo@a", "--yes")
    assert call("check", "--deep").out == "all is in order\n"
    assert json.loads(call("check", "--json").out) == {"findings": []}


@pytest.mark.parametrize(
    "harm",
    [
        lose_volume,
        open_volume_to_writes,
        shorten_image,
        change_image,
        spoil_record,
        leave_work,
        fill_pool,
    ],
)
def test_check_finds_what_is_not_in_order(
    call: Call, scene: Scene, harm: Callable[[Scene, Record], str]
) -> None:
    call("take", DOMAIN, "--name", "a")
    words = harm(scene, scene.host.catalog.get(UUID, SnapshotId("a")))
    done = call("check", "--deep")
    assert done.status == ExitStatus.REFUSED
    assert words in done.out and "problem" in done.err
    told = json.loads(call("check", "--deep", "--json").out)
    assert told["findings"] and told["error"]["kind"] == "Found"
    assert all(found["remedy"] for found in told["findings"])


def test_check_removes_volumes_without_a_snapshot(call: Call, scene: Scene) -> None:
    before = scene.lvm.names()
    call("take", DOMAIN, "--name", "a")
    shutil.rmtree(scene.host.catalog.path(scene.host.catalog.get(UUID, SnapshotId("a")), ""))
    found = call("check")
    assert found.status == ExitStatus.REFUSED and "belongs to no snapshot" in found.out
    assert call("check", "--fix").status == ExitStatus.REFUSED, "nobody said yes"
    assert scene.lvm.names() != before
    done = call("check", "--fix", "--yes")
    assert done.out == "removed vg0/demo-d0.a, vg1/demo-d1.a\nall is in order\n"
    assert scene.lvm.names() == before


def test_what_nobody_confirmed_is_told_all_the_same(call: Call, scene: Scene) -> None:
    """As a cron job of `check --fix` that forgot its `--yes` has it: mail of what there is."""
    call("take", DOMAIN, "--name", "a")
    call("take", DOMAIN, "--name", "b")
    lost, kept = (scene.host.catalog.get(UUID, SnapshotId(id_)) for id_ in "ab")
    shutil.rmtree(scene.host.catalog.path(lost, ""))
    shorten_image(scene, kept)
    before = scene.lvm.names()
    done = call("check", "--fix")
    assert done.status == ExitStatus.REFUSED and "not confirmed" in done.err
    assert "vg0/demo-d0.a" in done.out and "demo@b: its memory" in done.out
    told = json.loads(call("check", "--fix", "--json").out)
    assert told["error"]["kind"] == "NotConfirmed"
    assert [found["subject"] for found in told["findings"]] == [
        "demo@b",
        "vg0/demo-d0.a",
        "vg1/demo-d1.a",
    ]
    assert scene.lvm.names() == before


def test_what_is_found_has_one_order_whatever_that_of_lvm(call: Call, scene: Scene) -> None:
    """The groups are snapshotted at once, and ``report/lvs_sort`` may be anything."""
    call("take", DOMAIN, "--name", "a")
    shutil.rmtree(scene.host.catalog.path(scene.host.catalog.get(UUID, SnapshotId("a")), ""))
    told: list[list[str]] = []
    for _ in range(2):
        scene.lvm.volumes.reverse()
        found = json.loads(call("check", "--json").out)["findings"]
        told.append([each["subject"] for each in found])
    assert told == [["vg0/demo-d0.a", "vg1/demo-d1.a"]] * 2


def test_what_is_found_has_one_order_whatever_that_of_the_folder(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many snapshots that is anything, and another one after each `take`."""
    for id_ in "ab":
        call("take", DOMAIN, "--name", id_)
        shorten_image(scene, scene.host.catalog.get(UUID, SnapshotId(id_)))
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listdir(folder), reverse=True))
    found = json.loads(call("check", "--json").out)["findings"]
    assert [each["subject"] for each in found] == ["demo@a", "demo@b"]


def test_check_tells_programs_what_it_removed(call: Call, scene: Scene) -> None:
    """Whether anything is left that is not in order, or not."""
    call("take", DOMAIN, "--name", "a")
    call("take", DOMAIN, "--name", "b")
    lost, kept = (scene.host.catalog.get(UUID, SnapshotId(id_)) for id_ in "ab")
    shutil.rmtree(scene.host.catalog.path(lost, ""))
    shorten_image(scene, kept)
    told = json.loads(call("check", "--fix", "--yes", "--json").out)
    assert sorted(told["removed"]) == ["vg0/demo-d0.a", "vg1/demo-d1.a"]
    assert [found["subject"] for found in told["findings"]] == ["demo@b"]
    shutil.rmtree(scene.host.catalog.path(kept, ""))
    told = json.loads(call("check", "--fix", "--yes", "--json").out)
    assert len(told["removed"]) == 2 and told["findings"] == []
    told = json.loads(call("check", "--fix", "--yes", "--json").out)
    assert told == {"removed": [], "findings": []}


@pytest.mark.parametrize("vg", ["vg0", "vg1"])
def test_what_lvm_does_not_remove_hides_nothing_else(call: Call, scene: Scene, vg: str) -> None:
    """The others stayed, or were removed without a word, and what was found was not told."""
    call("take", DOMAIN, "--name", "a")
    call("take", DOMAIN, "--name", "b")
    lost, kept = (scene.host.catalog.get(UUID, SnapshotId(id_)) for id_ in "ab")
    shutil.rmtree(scene.host.catalog.path(lost, ""))
    shorten_image(scene, kept)

    def fail(argv: tuple[str, ...]) -> None:
        if argv[1] == "lvremove" and argv[-1] == vg:
            raise CommandFailed(argv=argv, status=5, stderr=f"Cannot change VG {vg}")

    scene.lvm.before = fail
    ids = {"vg0": "vg0/demo-d0.a", "vg1": "vg1/demo-d1.a"}
    stays = ids.pop(vg)
    done = call("check", "--fix", "--yes", "--json")
    told = json.loads(done.out)
    assert told["error"]["kind"] == "Found" and done.status == ExitStatus.REFUSED
    assert told["removed"] == list(ids.values())
    assert [found["subject"] for found in told["findings"]] == ["demo@b", stays]
    assert f"Cannot change VG {vg}" in done.err
    as_text = call("check", "--fix", "--yes")
    assert "removed no volumes" in as_text.out and stays in as_text.out


def test_a_lost_record_is_made_anew(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a", "--disk-only")
    assert call("catalog", "rebuild").out == "every snapshot has its record\n"
    shutil.rmtree(scene.host.settings.state_dir)
    found = call("check")
    assert (
        found.status == ExitStatus.REFUSED
        and "catalog rebuild --dry-run tells if a of" in found.out
    )
    told = call("catalog", "rebuild", "--dry-run")
    assert told.status == 0 and scene.ids() == []
    assert re.match(r"would rebuild demo@a of .*: 2 disks, no memory; unknown: its note", told.out)
    done = json.loads(call("catalog", "rebuild", "--json").out)
    assert list(done["rebuilt"]) == ["demo@a"] and scene.ids() == ["a"]
    assert call("check").status == 0
    scene.lvm.volumes.remove(scene.lvm.named("vg1", "demo-d1.a"))
    shutil.rmtree(scene.host.settings.state_dir)
    half = call("catalog", "rebuild")
    assert half.status == ExitStatus.REFUSED and "volumes of 1 of its 2 disks are there" in half.out
    assert scene.ids() == []


def test_what_another_snapvm_is_at_keeps_no_other_record_from_being_made_anew(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest was not made, nor what was made told, to people and to programs."""
    for name in "abc":
        call("take", DOMAIN, "--name", name, "--disk-only")
        damage = scene.host.catalog.folder(UUID, SnapshotId(name)) / "snapshot.json"
        damage.write_text("{")
    other = DomainUuid(UUID.replace("1", "2"))
    for volume in scene.lvm.volumes:
        if volume.name.endswith(".b"):
            volume.tags = {tag.replace(UUID, other) for tag in volume.tags}
    damaged = scene.host.catalog.folder(other, SnapshotId("b"))
    damaged.parent.mkdir()
    scene.host.catalog.folder(UUID, SnapshotId("b")).rename(damaged)
    locked = Catalog.locked
    tries: list[str] = []

    def busy(catalog: Catalog, uuid: DomainUuid, name: str) -> AbstractContextManager[None]:
        tries.append(name)
        if len(tries) == 2:
            raise Locked(domain=name, holder="process 1")
        return locked(catalog, uuid, name)

    monkeypatch.setattr(Catalog, "locked", busy)
    done = call("catalog", "rebuild", "--json")
    assert done.status == ExitStatus.REFUSED
    told = json.loads(done.out)
    assert list(told["rebuilt"]) == ["demo@a", "demo@c"]
    assert [finding["subject"] for finding in told["findings"]] == ["demo@b"]
    assert "another snapvm is working on demo" in told["findings"][0]["problem"]
    assert call("catalog", "rebuild").out.startswith("rebuilt demo@b of ")


@pytest.mark.parametrize("verb", ["check", "repair"])
def test_a_domain_that_nobody_knows_is_not_in_order(call: Call, verb: str) -> None:
    call("take", DOMAIN)
    told = call(verb, "dmeo")
    assert told.status == ExitStatus.NOT_FOUND and told.out == ""
    assert "there is no domain named dmeo" in told.err
    as_json = call(verb, "dmeo", "--json")
    assert as_json.status == ExitStatus.NOT_FOUND
    assert json.loads(as_json.out)["error"]["kind"] == "UnknownDomain"


@pytest.mark.parametrize("verb", ["check", "repair"])
def test_a_domain_without_snapshots_is_in_order(call: Call, verb: str) -> None:
    assert call(verb, DOMAIN).status == 0


@pytest.mark.parametrize("verb", ["check", "repair"])
def test_a_domain_that_is_gone_and_has_snapshots_is_known(
    call: Call, scene: Scene, verb: str
) -> None:
    call("take", DOMAIN)
    scene.hypervisor.machines.clear()
    assert call(verb, DOMAIN).status == 0


def test_a_snapshot_that_is_merged_is_told_of(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    scene.lvm.named("vg0", "demo-d0.a").merging = True
    told = call("check", DOMAIN)
    assert told.status == ExitStatus.REFUSED
    assert "demo@a: disk vda: its volume vg0/demo-d0.a is being merged into its disk" in told.out
    assert "cannot be rolled back to" in told.out


def lose_a_disk_too(scene: Scene, record: Record) -> None:
    lose_volume(scene, record)
    scene.host.catalog.path(record, "snapshot.json").write_text("{")


def lose_the_tags_too(scene: Scene, record: Record) -> None:
    """As with the volumes of an older snapvm, which do not say whose they are."""
    for volume in scene.lvm.volumes:
        volume.tags = {tag for tag in volume.tags if not tag.startswith("snapvm.of=")}
    scene.host.catalog.path(record, "snapshot.json").write_text("{")


def lose_the_file(scene: Scene, record: Record) -> None:
    lose_a_disk_too(scene, record)
    scene.host.catalog.path(record, "snapshot.json").unlink()


@pytest.mark.parametrize("options", [(), ("--disk-only",)], ids=["full", "disks"])
@pytest.mark.parametrize("harm", [lose_a_disk_too, lose_the_tags_too, lose_the_file])
def test_there_is_a_way_out_of_a_record_that_cannot_be_made_anew(
    call: Call,
    scene: Scene,
    tmp_path: Path,
    harm: Callable[[Scene, Record], None],
    options: tuple[str, ...],
) -> None:
    """What the hints say, done as they say it, to the end."""
    call("take", DOMAIN, "--name", "good")
    before = scene.lvm.names()
    call("take", DOMAIN, "--name", "off", *options)
    harm(scene, scene.host.catalog.get(UUID, SnapshotId("off")))
    refused = call("delete", "demo@off", "--yes")
    assert refused.status == ExitStatus.REFUSED
    found = re.search(r"rebuild --dry-run` shows .* move (\S+) out of the state", refused.err)
    assert found is not None and found[0] in call("check").out
    assert "`snapvm check` what to do" in call("list").err
    rebuilt = call("catalog", "rebuild", "--dry-run")
    assert rebuilt.status == ExitStatus.REFUSED
    assert "demo@off: cannot be rebuilt" in rebuilt.out and "hint: `snapvm check`" in rebuilt.err
    shutil.move(found[1], tmp_path / "moved away")
    left = call("check").out
    assert left.count("snapvm check --fix removes it") == len(scene.lvm.names()) - len(before)
    assert call("check", "--fix", "--yes").status == 0
    assert scene.lvm.names() == before and call("list").err == ""
    assert call("take", DOMAIN, "--name", "off").status == 0
    assert call("rollback", "demo@good", "--yes").status == 0 and call("check").status == 0


def test_a_record_of_a_newer_snapvm_is_to_be_left_alone(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    path = scene.host.catalog.folder(UUID, SnapshotId("a")) / "snapshot.json"
    path.write_text('{"schema": 99}')
    told = [call(*words) for words in (("check",), ("delete", "demo@a", "--yes"))]
    assert [done.status for done in told] == [ExitStatus.REFUSED] * 2
    for text in (told[0].out, told[1].err):
        assert "use the snapvm that wrote it" in text and "out of the state folder" not in text
