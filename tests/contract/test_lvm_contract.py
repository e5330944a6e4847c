"""What snapvm relies on of LVM; the fake keeps it, and so does the lvm of the lab."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from snapvm.failures import CommandFailed
from snapvm.lvm import argv, away
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.model import LvRef, LvUuid, Role, Silent, VgUuid, VolumeKind
from tests.contract.worlds import DISK, VG, LvmWorld, lvm_world

SET = "0123456789ab"
SNAPSHOT = f"{DISK}.snap"


@pytest.fixture
def world() -> Iterator[LvmWorld]:
    with lvm_world() as world:
        yield world


@pytest.fixture
def thick() -> Iterator[LvmWorld]:
    with lvm_world(thick=True) as world:
        yield world


def seen(world: LvmWorld, name: str) -> LogicalVolume:
    volume = world.lvm.report().lv_from_name(VG, name)
    assert volume is not None, name
    return volume


def names_in(world: LvmWorld) -> set[str]:
    return {volume.name for volume in world.lvm.report().volumes if volume.vg == VG}


def snapshot(world: LvmWorld, name: str = SNAPSHOT, role: Role = Role.NEW) -> LogicalVolume:
    snapshot_tagged(world, name, argv.tags(SET, world.disk, role))
    return seen(world, name)


def snapshot_tagged(world: LvmWorld, name: str, tags: Iterable[str]) -> None:
    with world.lvm.warmed([VG]) as lvms:
        lvms[VG][0].snapshot(world.disk, name, tags, limit_seconds=60)


def test_a_disk_is_reported_as_what_it_is(world: LvmWorld) -> None:
    disk = seen(world, DISK)
    assert disk.is_thin_volume and disk.is_active and disk.is_writable and not disk.is_open
    assert disk.pool == "pool" and disk.size_bytes == 64 << 20
    assert world.lvm.report().lv_of(disk.ref) == disk
    pool = seen(world, "pool")
    assert pool.data_percent is not None and pool.metadata_percent is not None
    assert not pool.is_thin_volume
    assert pool.metadata_bytes >= 2 << 20 and disk.metadata_bytes == 0


def test_pools_are_not_extended_where_nobody_wants_it(world: LvmWorld) -> None:
    assert world.lvm.extend_threshold_percent("") == 100
    assert world.lvm.extend_threshold_percent("thin-performance") == 100, "LVM comes with it"
    assert world.lvm.extend_threshold_percent("no-such-profile") == 100


def test_a_snapshot_is_read_only_inactive_skipped_and_tagged(world: LvmWorld) -> None:
    made = snapshot(world)
    assert not made.is_writable and not made.is_active
    assert made.attr[9] == "k"
    assert made.tags == set(argv.tags(SET, world.disk, Role.NEW))
    assert made.origin == DISK and made.size_bytes == 64 << 20


def test_a_name_that_is_taken_fails_and_changes_nothing(world: LvmWorld) -> None:
    first = snapshot(world)
    with pytest.raises(CommandFailed) as failed:
        snapshot(world)
    assert SNAPSHOT in str(failed.value)
    assert seen(world, SNAPSHOT) == first


def test_a_warm_lvm_makes_the_same_snapshot_and_tells_a_failure(world: LvmWorld) -> None:
    tags = argv.tags(SET, world.disk, Role.NEW)
    with world.lvm.warmed([VG]) as lvms:
        for name in (f"{DISK}.w1", f"{DISK}.w2"):
            lvms[VG][0].snapshot(world.disk, name, tags, limit_seconds=60)
        with pytest.raises(CommandFailed, match="already exists"):
            lvms[VG][0].snapshot(world.disk, f"{DISK}.w1", tags, limit_seconds=60)
    plain, warm = snapshot(world), seen(world, f"{DISK}.w2")
    assert (warm.attr, warm.tags, warm.origin) == (plain.attr, plain.tags, plain.origin)


def test_a_clone_of_a_snapshot_is_a_disk(world: LvmWorld) -> None:
    made = snapshot(world)
    clone = f"{DISK}.clone"
    world.lvm.clone(made.ref, clone, argv.tags(SET, world.disk, Role.ROLL), "auto")
    active = seen(world, clone)
    assert active.is_writable and active.is_active and active.attr[9] == "-"
    assert not seen(world, SNAPSHOT).is_active


def test_a_waiting_lvm_clones_and_renames_the_same_way(world: LvmWorld) -> None:
    """Two exchanges of names by one lvm, as a rollback has them; and it says what it cannot."""
    made, tags = snapshot(world), argv.tags(SET, world.disk, Role.ROLL)
    with world.lvm.warmed([VG]) as lvms:
        lvms[VG][0].clone(made.ref, f"{DISK}.clone", tags, "auto", limit_seconds=60)
        lvms[VG][0].rename(VG, DISK, f"{DISK}.former", limit_seconds=60)
        lvms[VG][0].rename(VG, f"{DISK}.clone", DISK, limit_seconds=60)
        with pytest.raises(CommandFailed, match="already exists"):
            lvms[VG][0].rename(VG, f"{DISK}.former", DISK, limit_seconds=60)
    former = world.lvm.report().lv_of(world.disk)
    assert former is not None and former.name == f"{DISK}.former" and former.is_active
    disk = seen(world, DISK)
    assert disk.is_active and disk.is_writable and set(tags) <= disk.tags


def test_a_rename_moves_the_name_and_keeps_the_uuid(world: LvmWorld) -> None:
    world.lvm.rename(VG, DISK, f"{DISK}.former")
    moved = world.lvm.report().lv_of(world.disk)
    assert moved is not None and moved.name == f"{DISK}.former" and moved.is_active
    with pytest.raises(CommandFailed):
        world.lvm.rename(VG, DISK, f"{DISK}.again")


def test_a_shelved_disk_is_kept_like_a_snapshot(world: LvmWorld) -> None:
    world.lvm.deactivate([world.disk])
    world.lvm.shelve(world.disk, argv.tags(SET, world.disk, Role.UNDO))
    kept = seen(world, DISK)
    assert not kept.is_active and not kept.is_writable and kept.attr[9] == "k"
    assert argv.role_tag(Role.UNDO) in kept.tags


def test_tags_change_for_several_at_once_and_again(world: LvmWorld) -> None:
    refs = [snapshot(world, f"{DISK}.{number}").ref for number in (1, 2)]
    for _ in range(2):
        world.lvm.retag(refs, add=[argv.role_tag(Role.OK)], remove=[argv.role_tag(Role.NEW)])
    for ref in refs:
        tags = seen(world, ref.lv).tags
        assert argv.role_tag(Role.OK) in tags and argv.role_tag(Role.NEW) not in tags


def test_removing_a_set_takes_what_is_ours_and_in_that_role(world: LvmWorld) -> None:
    snapshot(world, f"{DISK}.new", Role.NEW)
    snapshot(world, f"{DISK}.ok", Role.OK)
    snapshot_tagged(world, f"{DISK}.foreign", ["snapvm.set=" + SET])
    world.lvm.remove_set(VG, "ffffffffffff", Role.NEW)
    world.lvm.remove_set(VG, SET, Role.NEW)
    names = names_in(world)
    assert f"{DISK}.new" not in names
    assert {DISK, f"{DISK}.ok", f"{DISK}.foreign"} <= names


def test_removing_by_uuid_finds_a_renamed_volume_and_nothing_else(world: LvmWorld) -> None:
    made = snapshot(world)
    world.lvm.rename(VG, SNAPSHOT, f"{DISK}.elsewhere")
    snapshot(world)
    world.lvm.remove([made.ref])
    world.lvm.remove([made.ref])
    names = names_in(world)
    assert f"{DISK}.elsewhere" not in names and SNAPSHOT in names
    world.lvm.remove([world.disk])
    assert seen(world, DISK).uuid == world.disk.uuid, "it does not carry our tag"


def test_removing_goes_by_the_group_a_volume_is_in_now(world: LvmWorld) -> None:
    """A record has the names of its time; a group that is gone hinders nothing."""
    made, nowhere = snapshot(world), LvUuid("aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa")
    never_known = LvRef(vg=VG, lv=SNAPSHOT, uuid=LvUuid(""))
    world.lvm.remove([replace(made.ref, vg="no-such-group", uuid=nowhere), never_known])
    assert seen(world, SNAPSHOT) == made
    world.lvm.remove([replace(made.ref, vg="no-such-group")])
    assert world.lvm.report().lv_of(made.ref) is None


@pytest.mark.parametrize("vg_uuid", ["", f"AAAAAA{'-AAAA' * 5}-AAAAAA"])
def test_a_group_that_is_not_there_is_told_from_those_that_are(
    world: LvmWorld, vg_uuid: str
) -> None:
    report, unmade = world.lvm.report(), replace(world.disk, uuid=LvUuid(""))
    nowhere = replace(unmade, vg="no-such-group", vg_uuid=VgUuid(vg_uuid))
    assert world.lvm.explained(report, [world.disk]) is report, "nothing more is asked"
    explained = world.lvm.explained(report, [nowhere])
    groups = {group.name: group for group in explained.groups or ()}
    assert "no-such-group" not in groups and away.of_volume(nowhere, explained) is not None
    found = groups[VG]
    assert found.volumes >= 2 and not found.is_exported
    assert found.system_id == "" and found.lock_type in ("", "none")
    assert away.of_volume(unmade, explained) is None


# --- thick volumes -----------------------------------------------------------------------------

STORE_BYTES = 68 << 20
CHUNK_BYTES = 128 << 10


def make_store(world: LvmWorld, name: str) -> None:
    world.lvm.make_store(VG, name, STORE_BYTES, argv.tags(SET, world.disk, Role.NEW))


def attach(world: LvmWorld, name: str) -> None:
    with world.lvm.warmed([VG]) as lvms:
        lvms[VG][0].attach(world.disk, name, CHUNK_BYTES, limit_seconds=60)


def test_a_store_is_a_volume_without_device_until_it_is_attached(thick: LvmWorld) -> None:
    assert seen(thick, DISK).kind is VolumeKind.THICK
    make_store(thick, SNAPSHOT)
    store = seen(thick, SNAPSHOT)
    assert not store.is_active and not store.is_writable and not store.is_thick_snapshot
    assert store.tags == set(argv.tags(SET, thick.disk, Role.NEW))
    attach(thick, SNAPSHOT)
    made = seen(thick, SNAPSHOT)
    assert made.is_thick_snapshot and made.origin == DISK and made.uuid == store.uuid
    assert (made.is_active, made.is_writable, made.is_lost) == (True, False, False)
    assert (made.size_bytes, made.disk_bytes) == (STORE_BYTES, 64 << 20)
    assert made.chunk_bytes == CHUNK_BYTES and seen(thick, DISK).chunk_bytes == 0
    assert made.tags == store.tags and made.data_percent is not None
    assert [v.uuid for v in thick.lvm.report().snapshots_of(seen(thick, DISK))] == [made.uuid]


def test_how_full_a_snapshot_is_is_known_while_it_is_active(thick: LvmWorld) -> None:
    make_store(thick, SNAPSHOT)
    attach(thick, SNAPSHOT)
    assert seen(thick, SNAPSHOT).is_known_whole
    thick.lvm.deactivate([thick.disk])
    made = seen(thick, SNAPSHOT)
    assert made.is_thick_snapshot and not made.is_known_whole and not made.is_lost
    thick.lvm.activate([thick.disk])
    assert seen(thick, SNAPSHOT).is_known_whole


def test_the_kernel_tells_of_snapshots_what_lvm_tells(thick: LvmWorld) -> None:
    names = [f"{DISK}.{number}" for number in range(2)]
    for name in names:
        make_store(thick, name)
        attach(thick, name)
    known = thick.lvm.report()
    told = thick.lvm.filled(known, [seen(thick, DISK)], 60.0)
    for name in names:
        by_lvm, by_kernel = known.lv_from_name(VG, name), told.lv_from_name(VG, name)
        assert by_lvm is not None and by_kernel is not None and by_kernel.is_known_whole
        fills = (by_lvm.data_percent or 0.0, by_kernel.data_percent or 0.0)
        assert abs(fills[0] - fills[1]) < 0.1
        assert by_kernel.size_bytes == by_lvm.size_bytes == STORE_BYTES


def test_a_warm_lvm_attaches_too_and_tells_a_failure(thick: LvmWorld) -> None:
    make_store(thick, SNAPSHOT)
    with thick.lvm.warmed([VG]) as lvms:
        lvms[VG][0].attach(thick.disk, SNAPSHOT, CHUNK_BYTES, limit_seconds=60)
        with pytest.raises(CommandFailed):
            lvms[VG][0].attach(thick.disk, "no-such-store", CHUNK_BYTES, limit_seconds=60)
    assert seen(thick, SNAPSHOT).origin == DISK


def test_a_thick_disk_goes_back_to_any_snapshot_in_any_order(thick: LvmWorld) -> None:
    """The chosen snapshot and its siblings stay what they are."""
    snapshots = {}
    for text in ("one", "two", "three"):
        thick.write(text)
        make_store(thick, f"{DISK}.{text}")
        attach(thick, f"{DISK}.{text}")
        snapshots[text] = seen(thick, f"{DISK}.{text}")
    for text in ("two", "one", "three", "two"):
        thick.write("something else")
        filled = seen(thick, f"{DISK}.{text}").data_percent
        thick.lvm.copy_back(snapshots[text].ref, thick.disk, Silent())
        assert thick.read(DISK) == text
        assert {name: thick.read(f"{DISK}.{name}") for name in snapshots} == {
            name: name for name in snapshots
        }
        assert seen(thick, f"{DISK}.{text}").data_percent == filled, "it must not grow"
    thick.lvm.remove([snapshot.ref for snapshot in snapshots.values()])
    assert thick.read(DISK) == "two"
    assert not thick.lvm.report().snapshots_of(seen(thick, DISK))


def test_a_clone_has_the_read_ahead_it_is_made_with(world: LvmWorld) -> None:
    made, tags = snapshot(world), argv.tags(SET, world.disk, Role.ROLL)
    for number, sectors in enumerate(("auto", "0", "2048")):
        clone = f"{DISK}.clone{number}"
        world.lvm.clone(made.ref, clone, tags, sectors)
        assert seen(world, clone).read_ahead == sectors


def test_what_is_kept_from_boot_is_told(world: LvmWorld) -> None:
    def is_kept() -> bool:
        volume = world.lvm.full_report().lv_of(world.disk)
        assert volume is not None
        return volume.not_at_boot

    assert not is_kept()
    for _ in range(2):
        world.lvm.keep_from_boot([world.disk])
    assert is_kept()


def test_what_is_activated_only_on_demand_stays_active(world: LvmWorld) -> None:
    assert not seen(world, DISK).is_skipped
    for _ in range(2):
        world.lvm.skip_activation([world.disk])
    assert seen(world, DISK).is_skipped and seen(world, DISK).is_active


def test_a_clone_may_have_more_tags_than_fit_on_a_line(world: LvmWorld) -> None:
    mine = [f"mine{number}" for number in range(40)]
    made, clone = snapshot(world), f"{DISK}.clone"
    world.lvm.clone(made.ref, clone, mine, "auto")
    assert seen(world, clone).tags == set(mine)
    with world.lvm.warmed([VG]) as lvms, pytest.raises(CommandFailed, match="Too many arguments"):
        lvms[VG][0].clone(made.ref, f"{clone}2", mine, "auto", limit_seconds=60)
