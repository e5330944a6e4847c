"""The steps of a rollback; ``snapvm.consistency`` knows their order.

A clone of the snapshot takes the name of the disk, and what had the name is kept under another:
the snapshot stays, the present is not lost, and any snapshot can be gone back to again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from snapvm import images, naming, planning, recordfile
from snapvm.errors import DomainRefused, UnknownDomain
from snapvm.host import Host
from snapvm.lvm import argv
from snapvm.lvm.report import LogicalVolume, Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import (
    DiskRecord,
    Domain,
    DomainState,
    LvRef,
    Record,
    RecordKind,
    Role,
    Timing,
)
from snapvm.planning import RollbackPlan, SwapDisk


def plan(host: Host, record: Record) -> RollbackPlan:
    """Prove every precondition and decide; nothing is touched.

    Raises the kinds of ``Refused``, among them ``RecordUnusable`` for a snapshot that is gone.
    """
    domain = _domain_of(host, record)
    image = None
    if record.memory is not None:
        image = host.catalog.path(record, record.memory.file)
        images.check(image, record.memory)
    host.hypervisor.check_restore(domain, image)
    report = host.lvm.report()
    set_ = naming.new_set()
    wanted = f"undo-{naming.stamp(datetime.now(UTC))}"
    undo_id = naming.free_id(wanted, lambda id_: host.catalog.has(record.domain_uuid, id_))
    disks = planning.plan_swaps(record, domain, report, set_, undo_id)
    current = (report.lv_from_uuid(disk.current.uuid) for disk in disks)
    planning.check_pools(report, [volume for volume in current if volume], host.settings)
    return RollbackPlan(record=record, domain=domain, set=set_, undo_id=undo_id, disks=disks)


def _domain_of(host: Host, record: Record) -> Domain:
    """Return the domain as it is now; one with an image may have vanished meanwhile."""
    try:
        domain = host.hypervisor.find(record.domain)
    except UnknownDomain:
        if record.memory is None:
            raise
        return vanished(record)
    if domain.uuid != record.domain_uuid:
        raise DomainRefused(
            domain=domain.name,
            why=f"it is another domain (uuid {domain.uuid}) than {record.ref} was taken of",
            remedy="rename one of the two",
        )
    return domain


def vanished(record: Record, definition: str = "") -> Domain:
    """Return the domain of a record that its hypervisor does not know any more.

    ``definition`` is what it was when it was last seen; without it only an image starts it.
    """
    return Domain(
        name=record.domain,
        uuid=record.domain_uuid,
        hypervisor=record.hypervisor,
        state=DomainState.SHUTOFF,
        memory_bytes=record.memory_bytes,
        vcpus=record.vcpus,
        definition=definition,
    )


def undo_record(plan: RollbackPlan) -> Record:
    """Return the record of what is current before the rollback: its disks, no memory."""
    record = plan.record
    return Record(
        id=plan.undo_id,
        set=plan.set,
        kind=RecordKind.UNDO,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        named=False,
        note=f"what was current before the rollback to {record.id}",
        domain=record.domain,
        domain_uuid=record.domain_uuid,
        hypervisor=record.hypervisor,
        state=plan.domain.state,
        memory_bytes=plan.domain.memory_bytes,
        vcpus=plan.domain.vcpus,
        capture="none: the disks as a rollback found them",
        memory=None,
        disks=tuple(_kept(disk) for disk in plan.disks),
        omitted=(),
        timing=Timing(pause_ms=0, total_ms=0),
        written_bytes=0,
    )


def _kept(disk: SwapDisk) -> DiskRecord:
    return DiskRecord(
        target=disk.target,
        volume=disk.current,
        snapshot=LvRef(vg=disk.current.vg, lv=disk.undo_name, uuid=disk.current.uuid),
        kind=disk.kind,
        size_bytes=disk.size_bytes,
    )


class Phase(StrEnum):
    """How far a rollback is, as its journal says."""

    PREPARE = "prepare"
    """It can be taken back: the former domain is there."""
    SWAPPED = "swapped"
    """The former domain is gone and the disks are the clones: only forward."""
    STARTED = "started"
    """The domain has been started on them; what is left is bookkeeping."""


def journal(plan: RollbackPlan, undo: Record, *, paused: bool) -> dict[str, Any]:
    """Return what repair needs to finish a rollback or to take it back."""
    return {
        "kind": "rollback",
        "phase": Phase.PREPARE.value,
        "record": plan.record.id,
        "set": plan.set,
        "paused": paused,
        "was_running": plan.domain.state is DomainState.RUNNING,
        "definition": plan.domain.definition,
        "disks": [
            {
                "vg": disk.current.vg,
                "disk": disk.current.lv,
                "current": disk.current.uuid,
                "clone": disk.clone_name,
                "undo": disk.undo_name,
                "tags": list(disk.user_tags),
            }
            for disk in plan.disks
        ],
        "undo_record": recordfile.as_dict(undo),
    }


def make_clones(lvm: Lvm, plan: RollbackPlan) -> None:
    """Make a writable copy of every snapshot, with a device."""
    for disk in plan.disks:
        lvm.clone(disk.snapshot, disk.clone_name, argv.tags(plan.set, disk.current, Role.ROLL))
    lvm.activate([replace(disk.current, lv=disk.clone_name) for disk in plan.disks])


def swap_names(lvm: Lvm, plan: RollbackPlan) -> None:
    """Give every clone the name of its disk; what had it is kept."""
    for disk in plan.disks:
        lvm.rename(disk.current.vg, disk.current.lv, disk.undo_name)
        lvm.rename(disk.current.vg, disk.clone_name, disk.current.lv)


def put_names_back(lvm: Lvm, set_: str, disks: Iterable[dict[str, Any]]) -> None:
    """Take ``swap_names`` back, from wherever it stopped; ``disks`` as the journal has them."""
    report = lvm.report()
    for disk in disks:
        holder = report.lv_from_name(disk["vg"], disk["disk"])
        if holder is not None and _is_clone(holder, set_):
            lvm.rename(disk["vg"], disk["disk"], disk["clone"])
        former = report.lv_from_uuid(disk["current"])
        if former is not None and former.name != disk["disk"]:
            lvm.rename(disk["vg"], former.name, disk["disk"])


def are_swapped(report: Report, set_: str, disks: Iterable[dict[str, Any]]) -> bool:
    """Tell whether every disk of the journal is its clone already."""
    holders = [report.lv_from_name(disk["vg"], disk["disk"]) for disk in disks]
    return all(holder is not None and _is_clone(holder, set_) for holder in holders)


def _is_clone(volume: LogicalVolume, set_: str) -> bool:
    return {argv.TAG_OURS, argv.set_tag(set_), argv.role_tag(Role.ROLL)} <= volume.tags


def settle(host: Host, set_: str, undo: Record, disks: Iterable[dict[str, Any]]) -> None:
    """The bookkeeping after a rollback: former disks become the undo record, clones the disks.

    May be run again from wherever it stopped.
    """
    _keep_former(host.lvm, undo)
    host.catalog.put(undo)
    _hand_over(host.lvm, set_, disks)
    host.catalog.end_rollback(undo.domain_uuid)


def _keep_former(lvm: Lvm, undo: Record) -> None:
    """Make the former disks what snapshots are: no device, read-only, tagged."""
    report = lvm.report()
    for disk in undo.disks:
        former = report.lv_from_uuid(disk.snapshot.uuid)
        if former is None or argv.set_tag(undo.set) in former.tags:
            continue
        if former.is_active:
            lvm.deactivate([former.ref])
        lvm.shelve(former.ref, argv.tags(undo.set, disk.volume, Role.UNDO))


def _hand_over(lvm: Lvm, set_: str, disks: Iterable[dict[str, Any]]) -> None:
    """Make the clones ordinary disks: our tags off, the user's own tags on."""
    for disk in disks:
        former = LvRef(vg=disk["vg"], lv=disk["disk"], uuid=disk["current"])
        lvm.retag([former], add=disk["tags"], remove=argv.tags(set_, former, Role.ROLL))


def start_again(host: Host, domain: Domain, record: Record, *, paused: bool) -> DomainState:
    """Bring the domain into the state it was captured in, from memory where there is some.

    Raises ``CaptureFailed`` when it does not start.
    """
    paused = paused or record.state is DomainState.PAUSED
    if record.memory is not None:
        image = host.catalog.path(record, record.memory.file)
        host.hypervisor.restore(domain, image, paused=paused)
    elif record.state.has_memory:
        host.hypervisor.start(domain, paused=paused)
    else:
        return DomainState.SHUTOFF
    return DomainState.PAUSED if paused else DomainState.RUNNING
