"""The text of ``snapvm show``: a record in words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from snapvm.catalog import Catalog
from snapvm.cli.timeline import timeline
from snapvm.cli.words import age, counted, local_time, milliseconds, plain, size, versions
from snapvm.lvm.health import Health, VolumeState
from snapvm.model import DiskRecord, DomainState, Record, RecordKind

_LABEL = 10
_QUIESCED = "the guest's file systems were frozen: the disks are usable without the memory"


def lines(
    record: Record,
    healths: Sequence[Health],
    catalog: Catalog,
    now: datetime,
    *,
    is_unicode: bool,
) -> list[str]:
    """Return the lines that describe a record, without anything that a terminal would obey.

    ``healths`` has one element for each disk of the record, in the same order.
    """
    facts = [
        ("kind", f"{record.kind.value}: {_kind(record)}"),
        ("created", f"{local_time(record.created, precise=True)}, {age(record.created, now)}"),
        ("note", record.note),
        ("domain", _domain(record)),
        ("uuid", record.domain_uuid),
        ("capture", record.capture),
        ("memory", _memory(record, catalog)),
        ("zeroed", _zeroed(record)),
        ("quiesced", _QUIESCED if record.quiesced else ""),
        *(
            (f"disk {disk.target}", _disk(disk, health))
            for disk, health in zip(record.disks, healths, strict=True)
        ),
        *((side.kind.value, f"{side.name}, {size(side.size_bytes)}") for side in record.side_files),
        *((f"no {omitted.target}", f"left out: {omitted.why}") for omitted in record.omitted),
        ("time", _time(record)),
        ("written", size(record.written_bytes) if record.written_bytes else ""),
        ("versions", versions(record.versions)),
    ]
    table = [f"  {plain(label):<{_LABEL}} {plain(text)}".rstrip() for label, text in facts if text]
    bars = timeline(record.timing, is_unicode=is_unicode)
    return [plain(record.ref), *table, *(["", *bars] if bars else [])]


def _kind(record: Record) -> str:
    disks = counted(len(record.disks), "disk")
    if record.kind is RecordKind.FULL:
        return f"memory and {disks}, captured at one instant"
    if record.kind is RecordKind.UNDO:
        return f"{disks} as they were before a rollback"
    shut_off = record.state is DomainState.SHUTOFF
    why = "the domain was shut off" if shut_off else "memory was not asked for"
    return f"{disks}, captured at one instant, no memory: {why}"


def _domain(record: Record) -> str:
    name, vcpus = record.domain, counted(record.vcpus, "vCPU")
    memory = size(record.memory_bytes)
    return f"{name} ({record.hypervisor.value}), {record.state.value}, {vcpus}, {memory}"


def _memory(record: Record, catalog: Catalog) -> str:
    memory = record.memory
    if memory is None:
        return ""
    return f"{size(memory.size_bytes)}, {memory.format}, {catalog.path(record, memory.file)}"


def _zeroed(record: Record) -> str:
    """Say which mappings were zeroed in the image: a process of the guest may miss them."""
    foreign = {} if record.memory is None else record.memory.foreign
    if not foreign:
        return ""
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(foreign.items()))
    count = sum(foreign.values())
    entries = "entry" if count == 1 else "entries"
    return f"{count} page-table {entries} for frames that are not the domain's: {kinds}"


_STATES = {
    VolumeState.MERGING: ", which LVM is merging into the disk and will then remove",
    VolumeState.GONE: ", which is gone: a rollback is not possible",
    VolumeState.LOST: ", which is lost: more of the disk changed than it could hold",
    VolumeState.UNUSABLE: ", which is not as it was created: `snapvm check` says more",
    VolumeState.AWAY: ", whose volume group LVM does not show: `snapvm check` says why",
    VolumeState.UNKNOWN: ", whose state LVM does not report now",
}


def _disk(disk: DiskRecord, health: Health) -> str:
    text = f"{size(disk.size_bytes)}, {disk.volume}, {disk.kind.value} snapshot {disk.snapshot}"
    if health.volume and health.volume != str(disk.snapshot):
        text += f", which is {health.volume} now"
    if health.state in _STATES:
        return text + _STATES[health.state]
    if health.fill_percent is None:
        return text
    warning = "; it will soon be lost" if health.state is VolumeState.NEARLY_FULL else ""
    return f"{text}, {health.fill_percent:.0f} % of its room is used{warning}"


def _time(record: Record) -> str:
    total = f"{milliseconds(record.timing.total_ms)} in all"
    if not record.timing.pause_ms:
        return f"no pause, {total}"
    return f"the domain stood still for {milliseconds(record.timing.pause_ms)}; {total}"
