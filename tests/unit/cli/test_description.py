"""What ``snapvm show`` says of a snapshot: all of it, and nothing that is not so."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from snapvm.catalog import Catalog
from snapvm.cli import description
from snapvm.cli.words import local_time
from snapvm.lvm.health import Health, VolumeState
from snapvm.model import (
    MemoryRecord,
    Record,
    RecordKind,
    SideFile,
    SideKind,
    VolumeKind,
    WindowPart,
)
from tests.fakes.records import BEGIN, TIMING, UUID, disks_only, make_record

WELL = Health(target="vda", state=VolumeState.OK)
FOREIGN = "page-table entries for frames that are not the domain's"
CREATED = local_time(BEGIN.isoformat(), precise=True)


def told(record: Record, *healths: Health) -> list[str]:
    """Return the lines of its text, without the pause's chart."""
    catalog = Catalog(Path("/state"), Path("/run/snapvm"))
    its = healths or (WELL,) * len(record.disks)
    now = BEGIN + timedelta(minutes=3)
    lines = description.lines(record, its, catalog, now, is_unicode=False)
    return lines[: lines.index("")] if "" in lines else lines


def test_all_of_a_full_one_is_told() -> None:
    memory = MemoryRecord(
        file="memory.xl",
        format="xl-save",
        size_bytes=131 << 20,
        foreign={"shared info": 1, "grant": 2},
    )
    record = make_record(
        "a",
        note="before the upgrade",
        memory=memory,
        quiesced=True,
        side_files=(
            SideFile(kind=SideKind.NVRAM, name="demo_VARS.fd", size_bytes=540672, checksum=""),
        ),
    )
    ref, *lines = told(record)
    assert ref == "demo@a"
    assert {line[2:12].strip(): line[13:] for line in lines} == {
        "kind": "full: memory and 2 disks, captured at one instant",
        "created": f"{CREATED}, 3 minutes ago",
        "note": "before the upgrade",
        "domain": "demo (libvirt), running, 1 vCPU, 128 MiB",
        "uuid": UUID,
        "capture": "external: libvirt's own external memory",
        "memory": f"131 MiB, xl-save, /state/domains/{UUID}/a/memory.xl",
        "zeroed": f"3 {FOREIGN}: 2 grant, 1 shared info",
        "quiesced": "the guest's file systems were frozen: the disks are usable without the memory",
        "disk vda": "1.0 GiB, vg0/demo-vda, thin snapshot vg0/demo-vda.a",
        "disk vdb": "1.0 GiB, vg0/demo-vdb, thin snapshot vg0/demo-vdb.a",
        "nvram": "demo_VARS.fd, 528 KiB",
        "no sda": "left out: a CD-ROM cannot change",
        "time": "the domain stood still for 84 ms; 3.2 s in all",
        "written": "131 MiB",
        "versions": "libvirt 9.0.0, qemu 7.2.0",
    }


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (
            disks_only("a"),
            "disks: 2 disks, captured at one instant, no memory: the domain was shut off",
        ),
        (
            make_record("a", kind=RecordKind.DISKS, memory=None),
            "disks: 2 disks, captured at one instant, no memory: memory was not asked for",
        ),
        (
            disks_only("a", kind=RecordKind.UNDO),
            "undo: 2 disks as they were before a rollback",
        ),
    ],
)
def test_one_without_memory_says_why(record: Record, kind: str) -> None:
    lines = told(replace(record, omitted=()))
    assert lines[1] == f"  kind       {kind}"
    labels = {line[:13].strip() for line in lines}
    assert labels.isdisjoint({"note", "memory", "zeroed", "quiesced"})
    assert not any(line.startswith("  no ") for line in lines)


def test_one_of_a_domain_that_was_off_had_no_pause() -> None:
    lines = told(disks_only("a"))
    assert "  time       no pause, 412 ms in all" in lines
    assert not any(line.startswith("  written") for line in lines)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (replace(WELL, fill_percent=12.4), ", 12 % of its room is used"),
        (
            replace(WELL, state=VolumeState.NEARLY_FULL, fill_percent=97.0),
            ", 97 % of its room is used; it will soon be lost",
        ),
        (replace(WELL, state=VolumeState.GONE), ", which is gone: a rollback is not possible"),
        (replace(WELL, volume="vg0/demo-vda.a"), ""),
        (replace(WELL, volume="vg1/demo-vda.a"), ", which is vg1/demo-vda.a now"),
        (
            replace(WELL, state=VolumeState.UNKNOWN, fill_percent=1.0),
            ", whose state LVM does not report now",
        ),
    ],
)
def test_how_a_disk_is_stands_behind_it(health: Health, said: str) -> None:
    record = make_record("a")
    disks = tuple(replace(disk, kind=VolumeKind.THICK) for disk in record.disks[:1])
    (line,) = (line for line in told(replace(record, disks=disks), health) if "disk vda" in line)
    assert line == f"  disk vda   1.0 GiB, vg0/demo-vda, thick snapshot vg0/demo-vda.a{said}"


@pytest.mark.parametrize(("parts", "is_drawn"), [(TIMING.parts, True), ((), False)])
def test_the_pause_is_drawn_below_if_it_has_parts(
    parts: tuple[WindowPart, ...], is_drawn: bool
) -> None:
    record = make_record("a", timing=replace(TIMING, parts=parts))
    catalog = Catalog(Path("/state"), Path("/run/snapvm"))
    lines = description.lines(record, (WELL, WELL), catalog, BEGIN, is_unicode=False)
    assert ("" in lines) is is_drawn and any("lvm vda" in line for line in lines) is is_drawn
