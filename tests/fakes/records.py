"""Records for tests and benchmarks: plausible ones, and as many as wanted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from snapvm import naming, recordfile
from snapvm.model import (
    DiskRecord,
    DomainState,
    DomainUuid,
    HypervisorKind,
    LvRef,
    LvUuid,
    MemoryRecord,
    OmittedDisk,
    Record,
    RecordKind,
    SnapshotId,
    Timing,
    VolumeKind,
    WindowPart,
)
from tests.fakes.lvmwords import dashed

UUID = DomainUuid("5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e7f")
BEGIN = datetime(2026, 11, 22, 20, 17, 55, 250000, tzinfo=UTC)

TIMING = Timing(
    pause_ms=84.2,
    total_ms=3214.0,
    parts=(
        WindowPart(name="suspend", start_ms=0.0, duration_ms=3.1),
        WindowPart(name="lvm vda", start_ms=3.2, duration_ms=61.4),
        WindowPart(name="lvm vdb", start_ms=5.0, duration_ms=70.3),
        WindowPart(name="memory", start_ms=3.1, duration_ms=12.5),
        WindowPart(name="resume", start_ms=77.0, duration_ms=7.2),
    ),
)


def make_disk(target: str, id_: str, number: int = 0) -> DiskRecord:
    """Return a disk of the domain `demo` with its snapshot."""
    lv = f"demo-{target}"
    return DiskRecord(
        target=target,
        volume=LvRef(vg="vg0", lv=lv, uuid=LvUuid(dashed(2 * number))),
        snapshot=LvRef(vg="vg0", lv=f"{lv}.{id_}", uuid=LvUuid(dashed(2 * number + 1))),
        kind=VolumeKind.THIN,
        size_bytes=1 << 30,
    )


def make_record(id_: str = "20261122T201755Z", **changes: object) -> Record:
    """Return a full record of the domain `demo`, with the changes asked for."""
    record = Record(
        id=SnapshotId(id_),
        set="0123456789ab",
        kind=RecordKind.FULL,
        created=BEGIN.isoformat(timespec="milliseconds"),
        named=False,
        note="",
        domain="demo",
        domain_uuid=UUID,
        hypervisor=HypervisorKind.LIBVIRT,
        state=DomainState.RUNNING,
        memory_bytes=128 << 20,
        vcpus=1,
        capture="external: libvirt's own external memory",
        memory=MemoryRecord(file="memory.img", format="libvirt-save", size_bytes=137363456),
        disks=(make_disk("vda", id_), make_disk("vdb", id_, 1)),
        omitted=(OmittedDisk(target="sda", why="a CD-ROM cannot change"),),
        timing=TIMING,
        written_bytes=137363456,
        versions={"libvirt": "9.0.0", "qemu": "7.2.0"},
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def disks_only(id_: str, **changes: object) -> Record:
    """Return a record without memory, of a domain that was shut off."""
    without = {
        "kind": RecordKind.DISKS,
        "memory": None,
        "state": DomainState.SHUTOFF,
        "capture": "none: the domain was shut off",
        "timing": Timing(pause_ms=0.0, total_ms=412.0),
        "written_bytes": 0,
    }
    return make_record(id_, **{**without, **changes})


def put_record(state_dir: Path, record: Record) -> Path:
    """Write a record where the catalog expects it, without the catalog's fsyncs."""
    domain = state_dir / "domains" / record.domain_uuid
    folder = domain / record.id
    folder.mkdir(parents=True)
    (domain / ".name").write_text(record.domain)
    path = folder / "snapshot.json"
    path.write_text(recordfile.dump(record))
    return path


def put_many(state_dir: Path, count: int, domains: int = 20) -> None:
    """Write ``count`` records of several domains, an hour between each two."""
    for number in range(count):
        created = BEGIN - timedelta(hours=number)
        which = number % domains
        put_record(
            state_dir,
            make_record(
                naming.stamp(created),
                created=created.isoformat(timespec="milliseconds"),
                domain=f"machine{which}",
                domain_uuid=DomainUuid(f"5c1d2f0e-8a3b-4d6f-9e21-{which:012x}"),
                note=f"note {number}: before the nightly upgrade",
            ),
        )
