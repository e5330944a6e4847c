"""Everything in snapvm that reads what somebody else wrote, with honest examples to spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from snapvm import compression, cowsize, recordfile, rollbackplan, settings
from snapvm.catalog import Catalog
from snapvm.cli import columns, lookup, words
from snapvm.consistency import TakeRequest, repair_all, take
from snapvm.hypervisor import domainxml, overlays, startfiles, xencfg, xenconfig
from snapvm.lvm import exceptionstore, health, reading
from snapvm.memory import libvirtimage, sparseimage, verify
from snapvm.model import Record, Silent
from snapvm.rollbackjournal import RollbackJournal
from tests.fakes.machine import image_bytes
from tests.fakes.overlay import make_overlay
from tests.fakes.records import UUID, make_record, put_record
from tests.fakes.scene import DOMAIN, make_scene
from tests.fakes.scene import UUID as SCENE_UUID
from tests.unit.hypervisor.hvmconfig import WINDOWS
from tests.unit.lvm.store_builder import build_store
from tests.unit.memory import qemu_builders
from tests.unit.memory.qemu_builders import Entry
from tests.unit.memory.xen_builders import Guest

FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser; it may raise a ``SnapvmError`` or what is named here, and nothing else."""

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes, Path], object]
    """Gets the bytes, and a folder that is its own."""
    refuses_by: tuple[type[Exception], ...] = ()


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


# --- memory images ---


def _xl_image(data: bytes, folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(data)
    verify.verify_image(path)


def _libvirt_image(data: bytes, folder: Path) -> None:
    path = folder / "memory.save"
    path.write_bytes(data)
    libvirtimage.check(path, len(data))


def _qemu_stream(data: bytes, folder: Path) -> None:
    """Read a stream to its end, each page put at its place in a sparse image."""
    source = qemu_builders.save(folder / "memory.save", data)
    sparseimage.convert(source, folder / "sparse", Silent())


def _qemu_image(data: bytes, folder: Path) -> None:
    """The same with the head of libvirt's spoiled too."""
    source = folder / "memory.save"
    source.write_bytes(data)
    sparseimage.convert(source, folder / "sparse", Silent())


def _overlay(data: bytes, folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(data)
    assert path in overlays.chains([(path, "qcow2")]), "whoever looked at it came to grief"


# --- what LVM and the kernel say ---

_LVS_ROW = dict.fromkeys(reading.FIELDS, "") | {
    "vg_name": "vg0",
    "lv_name": "demo-d0",
    "lv_uuid": "000000-0000-0000-0000-0000-0000-000001",
    "lv_size": "67108864",
    "lv_attr": "Vwi-aotz--",
    "lv_layout": "thin,sparse",
    "lv_role": "public",
    "lv_tags": "snapvm=1,snapvm.set=0123456789ab",
    "lv_kernel_major": "253",
    "lv_kernel_minor": "4",
    "origin_size": "",
    "data_percent": "10.25",
    "vg_uuid": "000000-0000-0000-0000-0000-0000-000000",
    "vg_free": "8589934592",
    "vg_size": "12884901888",
    "vg_extent_size": "4194304",
    "vg_attr": "wz--n-",
    "vg_missing_pv_count": "0",
    "vg_mda_free": "512000",
    "max_lv": "0",
    "lv_count": "2",
}
_LVS_SNAPSHOT = _LVS_ROW | {
    "lv_name": "demo-d1.monday",
    "lv_uuid": "000000-0000-0000-0000-0000-0000-000002",
    "lv_attr": "sri-a-s---",
    "lv_layout": "linear",
    "lv_role": "public,snapshot,thicksnapshot",
    "lv_kernel_major": "-1",
    "lv_kernel_minor": "-1",
    "origin": "[demo-d1]",
    "origin_size": "67108864",
    "chunk_size": "65536",
}


def _lvs(data: bytes, _folder: Path) -> None:
    for volume in reading.parse(_text(data)).volumes:
        _ = (volume.kind, volume.disk_bytes, volume.is_lost, volume.state, volume.is_writable)


def _store(data: bytes, _folder: Path) -> None:
    def read(offset: int, length: int) -> memoryview:
        part = data[offset : offset + length]
        return memoryview(part.ljust(length, b"\0"))

    table = exceptionstore.read_table(read, max(len(data), 4096), 64 << 20)
    for _ in table.runs(1 << 20, 64 << 20):
        pass


# --- what a hypervisor says ---

_DOMAIN_XML = b"""<domain type='kvm'><name>demo</name><cpu mode='custom'><model>EPYC</model>
<numa><cell id='0' cpus='0'/></numa></cpu><devices>
<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg0/d0'/>
<target dev='vda' bus='virtio'/></disk>
<disk type='volume' device='disk'><source pool='p' volume='d1'/><target dev='vdb'/></disk>
<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
<interface type='network'><source network='default'/></interface></devices></domain>"""


def _domain_xml(data: bytes, _folder: Path) -> None:
    text = data.decode(errors="replace")
    domainxml.passthrough_devices(text)
    domainxml.cpu_element(text)
    domainxml.foreign_memory_writer(text)
    domainxml.image_label(text)
    domainxml.classify("demo", text, lambda pool, volume: Path("/dev", pool, volume))


_LONG_STREAM = qemu_builders.Stream(blocks=(("pc.ram", 64 << 20), ("pc.rom", 1 << 12))).having(
    *(Entry("pc.ram", number * 97) for number in range(150)),
    Entry("pc.rom", 0, qemu_builders.filled(1)),
)
"""Mostly zero pages, so that headers are spoiled more often than contents."""

_XL_CONFIG = json.dumps(
    [
        {
            "domid": 3,
            "config": {
                "c_info": {"type": "pv", "name": "web1", "uuid": str(UUID)},
                "b_info": {
                    "max_vcpus": 2,
                    "max_memkb": 131072,
                    "target_memkb": 131072,
                    "kernel": "/dev/null",
                    "cmdline": "console=hvc0",
                    "type.pv": {},
                },
                "disks": [
                    {"pdev_path": "/dev/vg0/g1", "vdev": "xvda", "format": "raw", "readwrite": 1}
                ],
                "nics": [{"devid": 0, "mac": "00:16:3e:00:00:01", "bridge": "xenbr0"}],
            },
        }
    ]
).encode()
_XL_HVM = json.dumps([{"domid": 4, "config": WINDOWS}]).encode()


def _xl_config(data: bytes, _folder: Path) -> None:
    config = xenconfig.parse("web1", _text(data))
    xenconfig.for_image(config, 32768)
    xencfg.tell("web1", config)
    startfiles.require("web1", xenconfig.start_files(config, boots=True))


# --- what snapvm wrote itself ---


def _record(data: bytes, folder: Path) -> None:
    """Read one as `list` and `show` do."""
    place = folder / "domains" / UUID / "20261122T201755Z"
    place.mkdir(parents=True, exist_ok=True)
    (place / "snapshot.json").write_bytes(data)
    catalog = Catalog(folder, folder / "run")
    found = list(catalog.entries())
    records = [entry for entry in found if isinstance(entry, Record)]
    columns.sorted_rows(
        (record, [health.of_disk(disk, None) for disk in record.disks]) for record in records
    )
    for record in records:
        words.age(record.created, datetime.now(UTC))
        recordfile.load(recordfile.dump(record).encode(), "again")
    recordfile.load(data, "record")


def _scene_of_a_killed_rollback(folder: Path) -> dict[str, bytes]:
    """Return the journals of a host on which everything was just about to happen."""
    scene = make_scene(folder, thick=("vg1",))
    record = take(scene.host, TakeRequest(domain=DOMAIN, name="kept"), Silent())
    plan = rollbackplan.plan(scene.host, record)
    former = rollbackplan.undo_record(plan)
    rollback = RollbackJournal.of_plan(plan, former, paused=False, set_time=True)
    intent = {
        "kind": "take",
        "set": "0123456789ab",
        "groups": ["vg0", "vg1"],
        "disks": [
            {"vg": disk.volume.vg, "lv": disk.volume.lv, "uuid": disk.volume.uuid}
            for disk in record.disks
        ],
        "domain": DOMAIN,
        "was_running": True,
        "host": {"id": "", "name": "lab"},
    }
    return {
        ".rollback.json": json.dumps(rollback.as_dict()).encode(),
        ".stop.json": json.dumps({"record": "kept", "set": record.set}).encode(),
        ".x.draft/intent.json": json.dumps(intent).encode(),
        ".x.gone/snapshot.json": recordfile.dump(record).encode(),
    }


def _journal(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        """Repair what the journal says; volumes that are not ours have to stay."""
        scene = make_scene(folder, thick=("vg1",))
        take(scene.host, TakeRequest(domain=DOMAIN, name="kept"), Silent())
        scene.lvm.add_disk("vg0", "precious", data="do not touch")
        others = {v.uuid for v in scene.lvm.volumes if "snapvm=1" not in v.tags}
        path = folder / "state" / "domains" / SCENE_UUID / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            repair_all(scene.host, None, Silent())
        finally:
            assert others <= {v.uuid for v in scene.lvm.volumes}, "a foreign volume is gone"
            assert scene.lvm.named("vg0", "precious").data == "do not touch"

    return read


# --- what a user types or writes ---


def _settings(data: bytes, folder: Path) -> None:
    path = folder / "snapvm.toml"
    path.write_bytes(data)
    settings.load({"SNAPVM_CONFIG": str(path)})


def _reference(data: bytes, folder: Path) -> None:
    if not (folder / "domains").exists():
        put_record(folder, make_record())
    lookup.find(Catalog(folder, folder / "run"), _text(data))


def _cow_size(data: bytes, _folder: Path) -> None:
    cowsize.parse(_text(data))


def _compression(data: bytes, _folder: Path) -> None:
    compression.parse(_text(data))


_SETTINGS = b"""state_dir = "/var/lib/snapvm"
pool_data_limit_percent = 90.0
cow_size = "20%"
window_limit_seconds = 30
compress = "zstd:3"
capture = "auto"
"""


def all_targets(folder: Path) -> tuple[Target, ...]:
    """Return every parser; ``folder`` is for making their examples."""
    journals = _scene_of_a_killed_rollback(folder)
    streams = (qemu_builders.GOOD.encode(), _LONG_STREAM.encode())
    saved = qemu_builders.save(folder / "memory.save", streams[0]).read_bytes()
    over = make_overlay(folder / "over", "/dev/vg0/d0", format_below="raw").read_bytes()
    shutil.rmtree(folder, ignore_errors=True)
    fixtures = [path.read_bytes() for path in sorted(FIXTURES.glob("catalog/*/*.json"))]
    small = Guest(per_record=600)
    lvs = json.dumps({"report": [{"lv": [_LVS_ROW, _LVS_SNAPSHOT]}], "log": []}).encode()
    kept = {3: b"former", 9: b"content", 4: b"of", 200: b"chunks"}
    return (
        Target(name="xl image", seeds=(Guest().encode(), small.encode()), read=_xl_image),
        Target(name="libvirt image", seeds=(image_bytes(7),), read=_libvirt_image),
        Target(name="QEMU stream", seeds=streams, read=_qemu_stream),
        Target(name="libvirt image to sparse", seeds=(saved,), read=_qemu_image),
        Target(name="overlay", seeds=(over,), read=_overlay),
        Target(name="lvs report", seeds=(lvs,), read=_lvs),
        Target(
            name="exception table",
            seeds=(build_store(kept), build_store(dict.fromkeys(range(300), b"x"))),
            read=_store,
            refuses_by=(exceptionstore.StoreLost, exceptionstore.StoreUnreadable),
        ),
        Target(name="domain XML", seeds=(_DOMAIN_XML,), read=_domain_xml),
        Target(name="xl configuration", seeds=(_XL_CONFIG, _XL_HVM), read=_xl_config),
        Target(
            name="record",
            seeds=(*fixtures, recordfile.dump(make_record()).encode()),
            read=_record,
        ),
        *(
            Target(name=f"journal {name}", seeds=(data,), read=_journal(name))
            for name, data in journals.items()
        ),
        Target(name="settings", seeds=(_SETTINGS,), read=_settings),
        Target(name="reference", seeds=(b"demo@20261122T201755Z", b"demo@latest"), read=_reference),
        Target(
            name="cow size",
            seeds=(b"20%", b"4G", b"full"),
            read=_cow_size,
            refuses_by=(ValueError,),
        ),
        Target(
            name="compression",
            seeds=(b"zstd:3", b"none", b"zstd"),
            read=_compression,
            refuses_by=(ValueError,),
        ),
    )
