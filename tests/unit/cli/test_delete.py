"""``snapvm delete`` and ``snapvm prune`` say what went, and delete no more than they were told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from snapvm.errors import ExitStatus
from snapvm.model import DomainUuid, SnapshotId
from tests.fakes.lvm import UNSEEN
from tests.fakes.records import disks_only, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call
from tests.unit.deeds import take


def test_delete_takes_several_and_each_once(call: Call, scene: Scene) -> None:
    for name in ("a", "b", "c"):
        call("take", DOMAIN, "--name", name)
    done = call("delete", "demo@a", "demo@b", "demo@a", "--yes")
    assert done.out == "deleted demo@a, demo@b\n"
    assert scene.ids() == ["c"]
    assert json.loads(call("delete", "demo@c", "-y", "--json").out) == {"deleted": ["demo@c"]}


def put_days(scene: Scene, days: int) -> None:
    state_dir = scene.host.settings.state_dir
    for day in range(1, days + 1):
        made = disks_only(
            f"d{day}", created=f"2026-03-{day:02}T12:00:00+00:00", domain_uuid=UUID, disks=()
        )
        put_record(state_dir, made)


def test_prune_keeps_what_the_rules_keep(call: Call, scene: Scene) -> None:
    put_days(scene, 5)
    tried = call("prune", DOMAIN, "--keep-last", "2", "--dry-run")
    assert "demo@d3 of" in tried.out and tried.out.endswith("would delete 3 snapshots, kept 2\n")
    assert len(scene.ids()) == 5
    assert call("prune", DOMAIN, "--keep-last", "2").status == ExitStatus.REFUSED
    done = json.loads(call("prune", "--all", "--keep-daily", "2", "--yes", "--json").out)
    assert done["kept"] == {"demo@d5": ["daily"], "demo@d4": ["daily"]}
    assert sorted(done["deleted"]) == ["demo@d1", "demo@d2", "demo@d3"]
    assert scene.ids() == ["d4", "d5"]
    again = call("prune", "--all", "--keep-daily", "2")
    assert again.status == 0 and again.out == "deleted no snapshots, kept 2\n"


def test_the_log_of_a_night_has_what_was_deleted(call: Call, scene: Scene) -> None:
    """It had their number alone."""
    put_days(scene, 4)
    done = call("prune", "--all", "--keep-last", "2", "--yes")
    told = "deleted demo@d2\ndeleted demo@d1\ndeleted 2 snapshots, kept 2\n"
    assert (done.status, done.out) == (0, told)


def test_what_a_wrong_clock_made_does_not_drive_out_what_is_taken_now(
    call: Call, scene: Scene
) -> None:
    """Seven takes of 2138 would keep their place for years, and all newer ones would go at once."""
    for day in (1, 2):
        created = f"2138-01-{day:02}T12:00:00+00:00"
        made = disks_only(f"d{day}", created=created, domain_uuid=UUID, disks=())
        put_record(scene.host.settings.state_dir, made)
    call("take", DOMAIN)
    done = json.loads(call("prune", DOMAIN, "--keep-last", "2", "--yes", "--json").out)
    assert done["deleted"] == [] and len(scene.ids()) == 3
    assert done["kept"]["demo@d1"] == done["kept"]["demo@d2"] == ["in the future"]


def test_of_many_that_nobody_confirmed_the_others_are_counted(call: Call, scene: Scene) -> None:
    put_days(scene, 7)
    done = call("delete", *(f"demo@d{day}" for day in range(1, 8)))
    assert done.status == ExitStatus.REFUSED and len(scene.ids()) == 7
    assert "deleting demo@d1, demo@d2, demo@d3, demo@d4, demo@d5 and 2 more: not" in done.err


def test_what_has_lost_its_volumes_does_not_drive_out_what_has_them(
    call: Call, scene: Scene
) -> None:
    """The newest had overflowed: prune kept those, and deleted the last that was of use."""
    for _ in range(5):
        call("take", DOMAIN)
    oldest, older, good, lost, last = scene.ids()
    for id_ in (lost, last):
        scene.lvm.volumes.remove(scene.lvm.named("vg1", f"demo-d1.{id_}"))
    told = call("prune", DOMAIN, "--keep-last", "2", "--dry-run").out
    assert told.count("keep   (last); it cannot be rolled back to\n") == 2
    done = json.loads(call("prune", DOMAIN, "--keep-last", "2", "--yes", "--json").out)
    assert done["deleted"] == [f"demo@{oldest}"]
    assert scene.ids() == [older, good, lost, last]
    for _ in range(2):
        call("take", DOMAIN)
    call("prune", DOMAIN, "--keep-last", "2", "--yes")
    assert len(scene.ids()) == 2 and not {lost, last} & set(scene.ids())


def test_what_has_lost_its_memory_does_not_drive_out_what_has_it(call: Call, scene: Scene) -> None:
    """Somebody removed the large files of the newest by hand, to make room."""
    for _ in range(4):
        call("take", DOMAIN)
    oldest, good, *emptied = scene.ids()
    for id_ in emptied:
        record = scene.host.catalog.get(UUID, SnapshotId(id_))
        assert record.memory is not None
        scene.host.catalog.path(record, record.memory.file).unlink()
    done = json.loads(call("prune", DOMAIN, "--keep-last", "1", "--yes", "--json").out)
    assert done["deleted"] == [f"demo@{emptied[0]}", f"demo@{oldest}"]
    assert scene.ids() == [good, emptied[1]]


def test_prune_asks_lvm_only_where_something_is_to_go(call: Call, scene: Scene) -> None:
    call("take", DOMAIN)
    asked: list[tuple[str, ...]] = []
    scene.lvm.before = asked.append
    assert call("prune", DOMAIN, "--keep-last", "2", "--yes").status == 0
    assert asked == []


OTHER = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")


def put_days_of(scene: Scene, name: str, uuid: DomainUuid) -> None:
    for day in (1, 2):
        created = f"2026-03-{day:02}T12:00:00+00:00"
        made = disks_only(f"d{day}", created=created, domain=name, domain_uuid=uuid, disks=())
        put_record(scene.host.settings.state_dir, made)


@pytest.mark.parametrize("busy", ["aaaa", "zzzz"])
def test_prune_of_all_goes_on_where_one_domain_is_busy(call: Call, scene: Scene, busy: str) -> None:
    """One long `take` in the night must not keep what 200 other domains have."""
    put_days(scene, 3)
    put_days_of(scene, busy, OTHER)
    with scene.host.catalog.locked(OTHER, busy):
        done = call("prune", "--all", "--keep-last", "1", "--yes", "--json")
    told = json.loads(done.out)
    assert done.status == told["error"]["exit_status"] == ExitStatus.FAILED
    assert told["because"] == "Locked" and f"is working on {busy}" in told["error"]["message"]
    assert told["deleted"] == ["demo@d1", "demo@d2"] and told["not_touched"] == [f"{busy}@d1"]
    assert scene.ids() == ["d3"] and len(scene.host.catalog.ids(OTHER)) == 2


def test_where_prune_could_delete_nothing_the_failure_is_what_it_is(
    call: Call, scene: Scene
) -> None:
    put_days_of(scene, "busy", OTHER)
    with scene.host.catalog.locked(OTHER, "busy"):
        done = call("prune", "--all", "--keep-last", "1", "--yes")
    assert done.status == ExitStatus.LOCKED


def test_of_what_keeps_prune_from_several_domains_all_is_told(call: Call, scene: Scene) -> None:
    put_days_of(scene, "busy", OTHER)
    for name in ("a", "b"):
        call("take", DOMAIN, "--name", name)
    for volume in scene.lvm.volumes:
        volume.opened = volume.opened or volume.name.endswith(".a")
    with scene.host.catalog.locked(OTHER, "busy"):
        done = call("prune", "--all", "--keep-last", "1", "--include-named", "--yes")
    assert done.status == ExitStatus.LOCKED and scene.ids() == ["a", "b"]
    assert "snapvm: another snapvm is working on busy" in done.err
    assert "warning: " in done.err and "demo@a and is in use" in done.err


def test_prune_takes_a_uuid_as_every_verb_does(call: Call, scene: Scene) -> None:
    put_days(scene, 3)
    other = disks_only("other", created="2026-03-09T12:00:00+00:00", disks=())
    assert other.domain == DOMAIN and other.domain_uuid != UUID
    put_record(scene.host.settings.state_dir, other)
    done = call("prune", UUID, "--keep-last", "1", "--dry-run", "--json")
    told = json.loads(done.out)
    assert told["kept"] == {"demo@d3": ["last"]}
    assert told["deleted"] == ["demo@d2", "demo@d1"]
    assert call("prune", UUID, "--keep-last", "1", "--yes").status == 0
    assert scene.ids() == ["d3"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_domain_loses_nothing_to_another_that_got_its_name(
    call: Call, scene: Scene, is_there: bool
) -> None:
    """Renamed, to keep it and what it has; one that was only defined anew is the same still."""
    put_days(scene, 2)
    put_days_of(scene, DOMAIN, OTHER)
    if is_there:
        scene.hypervisor.add(replace(scene.machine.domain, name="archive", uuid=OTHER), ())
    told = json.loads(call("prune", "--all", "--keep-last", "2", "--yes", "--json").out)
    assert len(told["deleted"]) == (0 if is_there else 2)
    assert len(scene.ids(OTHER)) + len(scene.ids()) == (4 if is_there else 2)


def test_one_that_is_refused_when_others_are_gone_is_told_with_them(
    call: Call, scene: Scene
) -> None:
    for name in "abc":
        call("take", DOMAIN, "--name", name)
    (used,) = [volume for volume in scene.lvm.volumes if volume.name.endswith("d0.b")]

    def occupy(argv: tuple[str, ...]) -> None:
        used.opened = used.opened or argv[1] == "lvremove"

    scene.lvm.before = occupy
    done = call("delete", "demo@a", "demo@b", "demo@c", "--yes", "--json")
    told = json.loads(done.out)
    assert done.status == told["error"]["exit_status"] == ExitStatus.FAILED
    assert told["deleted"] == ["demo@a"] and told["not_touched"] == ["demo@b", "demo@c"]
    assert told["error"]["kind"] == "DeleteStopped" and told["because"] == "VolumeRefused"
    assert "deleted demo@a, not touched demo@b, demo@c\n" in done.err
    assert scene.ids() == ["b", "c"]


def test_delete_of_one_that_is_missing_deletes_none(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    assert call("delete", "demo@a", "demo@z", "--yes").status == ExitStatus.NOT_FOUND
    assert scene.ids() == ["a"]


def test_one_that_another_prune_deletes_meanwhile_is_no_failure(call: Call, scene: Scene) -> None:
    """Two timers meet: what the one waited for its turn to delete is what the other deleted."""
    put_days(scene, 5)
    ids, asked = scene.host.catalog.ids, 0

    def other_comes_first(uuid: DomainUuid) -> list[SnapshotId]:
        nonlocal asked
        asked += 1
        if asked == 1:
            for day in ("d1", "d3"):
                record = scene.host.catalog.get(uuid, SnapshotId(day))
                scene.host.catalog.forget(scene.host.catalog.hide(record))
        return ids(uuid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene.host.catalog, "ids", other_comes_first)
        done = call("prune", DOMAIN, "--keep-last", "1", "--yes", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["deleted"] == ["demo@d4", "demo@d2"]
    assert scene.ids() == ["d5"]


def test_a_group_that_is_away_is_told_and_left_behind(call: Call, scene: Scene) -> None:
    for name in "ab":
        call("take", DOMAIN, "--name", name)
    scene.lvm.away["vg1"] = UNSEEN
    done = call("delete", "demo@a", "--yes", "--json")
    told = json.loads(done.out)["error"]
    assert done.status == ExitStatus.REFUSED and told["kind"] == "GroupAway"
    assert "--forget-missing demo@a" in told["hint"] and scene.ids() == ["a", "b"]
    done = call("prune", "--all", "--keep-last", "1", "--include-named", "--yes")
    assert done.status == ExitStatus.REFUSED and scene.ids() == ["a", "b"]
    done = call("delete", "demo@a", "--yes", "--forget-missing")
    assert done.out == "deleted demo@a\n" and "are left behind" in done.err
    assert scene.ids() == ["b"]
    scene.lvm.away.clear()
    assert "vg1/demo-d1.a: it was made by snapvm, but belongs to no snapshot" in call("check").out
    assert call("check", "--fix", "--yes").out == "removed vg1/demo-d1.a\nall is in order\n"


def test_nobody_takes_over_what_is_of_any_domain(call: Call) -> None:
    done = call("repair", "--take-over")
    assert done.status == ExitStatus.USAGE and "--take-over" in done.err
    assert call("repair", DOMAIN, "--take-over").out == "nothing to repair\n"


def test_a_prune_that_fails_for_one_names_all_that_it_deleted(call: Call, scene: Scene) -> None:
    """Five were named, and the others counted, in the log of each night in which a backup ran."""
    ids = [take(scene).id for _ in range(10)]
    used = scene.host.catalog.get(UUID, ids[3])
    scene.lvm.named("vg0", used.disks[0].snapshot.lv).opened = True
    prune = ("prune", DOMAIN, "--keep-last", "1", "--yes")
    done = call(*prune)
    assert done.status == ExitStatus.FAILED and "and is in use; deleted " in done.err
    gone = [id_ for id_ in ids[:-1] if id_ != ids[3]]
    assert done.out.splitlines() == [f"deleted demo@{id_}" for id_ in gone]
    assert scene.ids() == [ids[3], ids[-1]]
