"""Space that must not surprise: chunks, siblings, and what is kept free; on fakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapvm import consistency, cowsize
from snapvm.cowsize import CowSize
from snapvm.model import Record, Silent
from snapvm.refusals import NoSpace, VolumeRefused
from tests.fakes.scene import Scene, make_scene
from tests.unit.deeds import advice, take, with_settings

LARGE = 512 << 10


@pytest.fixture
def thick(tmp_path: Path) -> Scene:
    return make_scene(tmp_path, thick=("vg0", "vg1"))


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
            consistency.plan_rollback(thick.host, record, Silent())
    else:
        consistency.plan_rollback(thick.host, record, Silent())


def test_what_keeps_the_present_has_room_for_chunks_larger_than_those_written_back(
    thick: Scene,
) -> None:
    """Each that is written back may cost it a whole one of its own."""
    bounded = with_settings(thick, cow_size=CowSize(percent=10))
    take(bounded, "a")
    record = take(bounded, "b")
    stores = {}
    for chunk_bytes in (cowsize.DEFAULT_CHUNK_BYTES, LARGE):
        for volume in thick.lvm.volumes:
            volume.data_percent = 1.0
            if volume.name.endswith(".a"):
                volume.chunk_bytes = chunk_bytes
        plan = consistency.plan_rollback(bounded.host, record, Silent())
        stores[chunk_bytes] = {disk.store_bytes for disk in plan.disks}
    assert stores == {cowsize.DEFAULT_CHUNK_BYTES: {16 << 20}, LARGE: {68 << 20}}, "all of it"


def test_many_thick_snapshots_are_advised_against(thick: Scene) -> None:
    for number in range(4):
        take(thick, f"s{number}")
    assert advice(thick) == ()
    take(thick, "s4")
    vda, vdb = advice(thick)
    assert vda.startswith("vda has 5 thick snapshots") and vdb.startswith("vdb has 5")
    assert "snapvm prune" in vda and "thin pool" in vda


def test_so_much_of_a_group_stays_free_as_was_asked(thick: Scene) -> None:
    thick.lvm.vg_free_bytes = 1 << 31
    take(with_settings(thick, group_limit_percent=88.0), "fits")
    with pytest.raises(NoSpace, match=r"vg0 \(at most .* full.*\): 68 MiB .* 0 MiB free"):
        take(with_settings(thick, group_limit_percent=87.5 - 0.005), "not")
    assert thick.ids() == ["fits"]
