"""How a snapshot's volume is, as far as LVM tells."""

from __future__ import annotations

import pytest

from snapvm.lvm import argv, health
from snapvm.lvm.health import Health, VolumeState
from snapvm.lvm.volumes import Lvm
from snapvm.model import DiskRecord, LvRef, LvUuid, VolumeKind
from tests.fakes.lvm import FakeLvm


def judged(
    kind: VolumeKind,
    *,
    invalid: bool = False,
    active: bool = True,
    writable: bool = False,
    tags: frozenset[str] = frozenset({argv.TAG_OURS}),
    lacks: str = "",
    size_bytes: int = 1 << 26,
) -> health.Health:
    fake = FakeLvm()
    pool = "pool" if kind is VolumeKind.THIN else ""
    snapshot = fake.add_disk("vg0", "disk.snap", pool=pool)
    snapshot.origin, snapshot.origin_bytes = "disk", size_bytes
    snapshot.size_bytes = size_bytes
    snapshot.tags = set(tags)
    snapshot.invalid, snapshot.active, snapshot.writable = invalid, active, writable
    snapshot.health = lacks
    ref = LvRef(vg="vg0", lv="disk.snap", uuid=LvUuid(snapshot.uuid))
    disk = DiskRecord(target="vda", volume=ref, snapshot=ref, kind=kind, size_bytes=1 << 26)
    return health.of_disk(disk, Lvm(fake).report())


def test_a_thin_snapshot_that_is_there_is_well() -> None:
    assert judged(VolumeKind.THIN, active=False).state is VolumeState.OK


def test_a_thick_one_tells_how_full_it_is() -> None:
    found = judged(VolumeKind.THICK)
    assert (found.state, found.fill_percent) == (VolumeState.OK, 10.0)


def test_one_the_kernel_gave_up_is_lost() -> None:
    assert judged(VolumeKind.THICK, invalid=True).state is VolumeState.LOST


@pytest.mark.parametrize("kind", VolumeKind)
def test_one_that_may_have_changed_is_not_called_well(kind: VolumeKind) -> None:
    found = judged(kind, writable=True)
    assert (found.state, found.fill_percent) == (VolumeState.UNUSABLE, None)


@pytest.mark.parametrize("kind", VolumeKind)
@pytest.mark.parametrize("size_bytes", [1 << 25, 1 << 27])
def test_one_that_has_another_size_is_not_called_well(kind: VolumeKind, size_bytes: int) -> None:
    assert judged(kind, size_bytes=size_bytes).state is VolumeState.UNUSABLE


@pytest.mark.parametrize("kind", VolumeKind)
def test_one_without_its_tags_is_not_called_well(kind: VolumeKind) -> None:
    """No rollback takes it; `check` found all in order, and `prune` deleted others for it."""
    assert judged(kind, tags=frozenset()).state is VolumeState.UNUSABLE


@pytest.mark.parametrize("kind", VolumeKind)
def test_one_that_lacks_a_part_is_not_called_away(kind: VolumeKind) -> None:
    """Its group is there."""
    assert judged(kind, lacks="partial").state is VolumeState.UNUSABLE


def test_of_several_that_are_well_the_fullest_is_worst() -> None:
    thin, half, full = (
        Health(target="vda", state=VolumeState.OK, fill_percent=fill) for fill in (None, 50.0, 60.0)
    )
    lost = Health(target="vdb", state=VolumeState.LOST)
    assert health.worst([half, full, thin]) is full and health.worst([thin, half]) is half
    assert health.worst([full, lost]) is lost and health.worst([]) is None


def test_what_is_not_told_is_not_good() -> None:
    assert judged(VolumeKind.THICK, active=False).state is VolumeState.UNKNOWN
    ref = LvRef(vg="vg0", lv="x", uuid=LvUuid("none"))
    disk = DiskRecord(target="a", volume=ref, snapshot=ref, kind=VolumeKind.THIN, size_bytes=1)
    assert health.of_disk(disk, None).state is VolumeState.UNKNOWN
    lvm = Lvm(FakeLvm())
    assert health.of_disk(disk, lvm.report()).state is VolumeState.AWAY


def test_one_that_its_group_has_not_is_gone() -> None:
    fake = FakeLvm()
    lvm, ref = Lvm(fake), LvRef(vg="vg0", lv="x", uuid=LvUuid("none"))
    disk = DiskRecord(target="a", volume=ref, snapshot=ref, kind=VolumeKind.THIN, size_bytes=1)
    pool = fake.add_pool("vg0")
    assert health.of_disk(disk, lvm.report()).state is VolumeState.GONE
    fake.volumes.remove(pool)
    report = lvm.report()
    assert health.of_disk(disk, report).state is VolumeState.AWAY, "lvs knows no empty group"
    assert health.of_disk(disk, lvm.explained(report, [ref])).state is VolumeState.GONE
