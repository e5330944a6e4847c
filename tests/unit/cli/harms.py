"""What can happen to a host; each deed returns words of what is then told."""

from __future__ import annotations

from snapvm.model import Record, SnapshotId
from tests.fakes.scene import DOMAIN, UUID, Scene


def lose_volume(scene: Scene, record: Record) -> str:
    scene.lvm.volumes.remove(scene.lvm.named("vg1", record.disks[1].snapshot.lv))
    return "its volume vg1/demo-d1.a is gone"


def open_volume_to_writes(scene: Scene, record: Record) -> str:
    scene.lvm.named("vg0", record.disks[0].snapshot.lv).writable = True
    return "is writable"


def shorten_image(scene: Scene, record: Record) -> str:
    image = scene.host.catalog.path(record, "memory.save")
    image.write_bytes(image.read_bytes()[:-1])
    return "its memory"


def change_image(scene: Scene, record: Record) -> str:
    image = scene.host.catalog.path(record, "memory.save")
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    return "has changed since it was taken"


def spoil_record(scene: Scene, record: Record) -> str:
    scene.host.catalog.path(record, "snapshot.json").write_text("{")
    return "demo@a: its record cannot be read"


def leave_work(scene: Scene, record: Record) -> str:
    scene.host.catalog.begin(scene.host.catalog.draft(UUID, SnapshotId("b")), DOMAIN, {"set": "x"})
    return "work on it was not finished (.b.draft) (snapvm repair demo)"


def fill_pool(scene: Scene, record: Record) -> str:
    for volume in scene.lvm.volumes:
        if not volume.pool:
            volume.data_percent = 95.0
    return "its data is 95.0 % full"
