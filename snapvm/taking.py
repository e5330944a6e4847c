"""The steps of a `take`; ``snapvm.consistency`` knows their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event
from typing import Any

from snapvm import naming, planning
from snapvm.clock import WindowClock
from snapvm.errors import CommandFailed, CommandTimedOut, SnapshotExists, SnapshotFailed
from snapvm.host import Host
from snapvm.hypervisor.base import Capture
from snapvm.lvm import argv
from snapvm.lvm.warm import WarmLvm
from snapvm.model import (
    DiskRecord,
    Domain,
    DomainState,
    MemoryRecord,
    Record,
    RecordKind,
    Role,
    SnapshotId,
)
from snapvm.planning import PlannedDisk, TakePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRequest:
    """What the user asked `take` for."""

    domain: str
    name: str | None = None
    note: str = ""
    with_memory: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What the window brought in."""

    created: datetime
    method: str
    memory: MemoryRecord | None
    disks: tuple[DiskRecord, ...]


def plan(host: Host, domain: Domain, request: TakeRequest) -> TakePlan:
    """Check everything and decide; nothing is touched.

    Raises ``BadName`` and the kinds of ``Refused``.
    """
    id_ = _new_id(host, domain, request.name)
    host.hypervisor.check_capture(domain, with_memory=request.with_memory)
    drives = host.hypervisor.drives(domain)
    report = host.lvm.report()
    volumes = planning.resolve(domain, drives.disks, report, host.lvm.uuid_of_device)
    planning.check_pools(report, volumes.values(), host.settings)
    with_memory = request.with_memory and domain.state.has_memory
    if with_memory:
        planning.check_image_room(host.settings.state_dir, domain.memory_bytes)
    set_ = naming.new_set()
    return TakePlan(
        domain=domain,
        id=id_,
        set=set_,
        named=request.name is not None,
        note=request.note,
        with_memory=with_memory,
        disks=planning.plan_disks(volumes, report, id_, set_),
        omitted=drives.omitted,
    )


def _new_id(host: Host, domain: Domain, name: str | None) -> SnapshotId:
    if name is not None:
        if host.catalog.has(domain.uuid, naming.check_name(name)):
            raise SnapshotExists(domain=domain.name, id=name)
        return SnapshotId(name)
    wanted = naming.stamp(datetime.now(UTC))
    return naming.free_id(wanted, lambda id_: host.catalog.has(domain.uuid, id_))


def intent(plan: TakePlan) -> dict[str, Any]:
    """Return what repair needs to take a `take` back."""
    return {
        "kind": "take",
        "set": plan.set,
        "groups": list(plan.groups),
        "domain": plan.domain.name,
        "was_running": plan.domain.state is DomainState.RUNNING,
    }


def catch(
    host: Host,
    plan: TakePlan,
    lvms: Mapping[str, WarmLvm],
    capture: Capture,
    clock: WindowClock,
) -> None:
    """Inside the window: make all snapshots, one worker a group, the memory's part beside them.

    Raises ``SnapshotFailed`` for the first disk that has none; the others are not begun then.
    """
    failed = Event()

    def snapshot_group(disks: Sequence[PlannedDisk]) -> None:
        for disk in disks:
            if failed.is_set():
                return
            try:
                with clock.part(f"lvm {disk.target}"):
                    _snapshot(host, plan, lvms[disk.volume.vg], disk)
            except BaseException:
                failed.set()
                raise

    groups = [[disk for disk in plan.disks if disk.volume.vg == vg] for vg in plan.groups]
    with ThreadPoolExecutor(max_workers=len(groups) + 1) as pool:
        work = [pool.submit(snapshot_group, disks) for disks in groups]
        work.append(pool.submit(capture.arm))
        for future in work:
            future.result()


def _snapshot(host: Host, plan: TakePlan, lvm: WarmLvm, disk: PlannedDisk) -> None:
    try:
        lvm.snapshot(
            disk.volume,
            disk.snapshot_name,
            argv.tags(plan.set, disk.volume, Role.NEW),
            limit_seconds=host.settings.window_limit_seconds,
        )
    except (CommandFailed, CommandTimedOut) as error:
        raise SnapshotFailed(target=disk.target, volume=str(disk.volume), why=str(error)) from error


def verified(host: Host, plan: TakePlan) -> tuple[DiskRecord, ...]:
    """Return the disks of the record, each snapshot seen in LVM as it was asked for."""
    report = host.lvm.report()
    disks = []
    for disk in plan.disks:
        made = report.lv_from_name(disk.volume.vg, disk.snapshot_name)
        if made is None or argv.set_tag(plan.set) not in made.tags or made.is_writable:
            raise SnapshotFailed(
                target=disk.target,
                volume=str(disk.volume),
                why=f"{disk.snapshot_name} is not there as it was asked for",
            )
        disks.append(
            DiskRecord(
                target=disk.target,
                volume=disk.volume,
                snapshot=made.ref,
                kind=disk.kind,
                size_bytes=made.size_bytes,
            )
        )
    return tuple(disks)


def record(host: Host, plan: TakePlan, caught: Caught, clock: WindowClock) -> Record:
    """Put the record of a take together."""
    domain = plan.domain
    memory = caught.memory
    return Record(
        id=plan.id,
        set=plan.set,
        kind=RecordKind.DISKS if memory is None else RecordKind.FULL,
        created=caught.created.isoformat(timespec="milliseconds"),
        named=plan.named,
        note=plan.note,
        domain=domain.name,
        domain_uuid=domain.uuid,
        hypervisor=domain.hypervisor,
        state=domain.state,
        memory_bytes=domain.memory_bytes,
        vcpus=domain.vcpus,
        capture=caught.method,
        memory=memory,
        disks=caught.disks,
        omitted=plan.omitted,
        timing=clock.timing(),
        written_bytes=0 if memory is None else memory.size_bytes,
        versions=host.hypervisor.versions(),
    )
