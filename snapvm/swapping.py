"""The steps of a rollback; ``snapvm.consistency`` knows their order.

Thin: a clone of the snapshot takes the name of the disk, and what had the name is kept under
another.  Thick: the present is kept by one more snapshot, and what the chosen one holds is written
back.  Either way the snapshot stays, the present is not lost, and any snapshot can be gone back to
again.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from snapvm import durable, images, occupancy, planning, retry, rollbackjournal, sidefiles
from snapvm.clock import Deadline
from snapvm.errors import SnapvmError, UnknownDomain
from snapvm.failures import NotStarted, RollbackFailed
from snapvm.host import Host
from snapvm.lvm import argv, belonging
from snapvm.lvm.crew import Crews
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import EFFECT_LIMIT_SECONDS, Lvm
from snapvm.model import (
    DiskRecord,
    Domain,
    DomainState,
    LvRef,
    Progress,
    Record,
    Role,
    SnapshotId,
    VolumeKind,
)
from snapvm.planning import RollbackPlan, SwapDisk
from snapvm.refusals import RecordUnusable

JOURNAL = "rollback"

log = logging.getLogger(__name__)


def prepare(lvm: Lvm, warm: Crews, plan: RollbackPlan, undo: Record) -> None:
    """Make what is going to be a thin disk, with a device, and what a thick one's present needs."""
    for disk in _thin(plan):
        tags = belonging.tags(plan.set, disk.current, Role.ROLL, belonging.of(undo, disk.target))
        warm[disk.current.vg][0].clone(
            disk.snapshot, disk.clone_name, tags, limit_seconds=EFFECT_LIMIT_SECONDS
        )
    for disk in _thick(plan):
        tags = belonging.tags(plan.set, disk.current, Role.ROLL, belonging.of(undo, disk.target))
        lvm.make_store(disk.current.vg, disk.undo_name, disk.store_bytes, tags)


def exchange(warm: Crews, plan: RollbackPlan, deadline: Deadline) -> None:
    """Keep the present of every disk: of a thin one by renaming, of a thick one by a snapshot.

    Raises ``RollbackFailed`` when the time is over before all of it is done: the domain stands
    still meanwhile.
    """
    for disk in _thick(plan):
        limit_seconds = _left(deadline, plan)
        warm[disk.current.vg][0].attach(
            disk.current, disk.undo_name, disk.chunk_bytes, limit_seconds=limit_seconds
        )
    for disk in _thin(plan):
        vg, name = disk.current.vg, disk.current.lv
        for old, new in ((name, disk.undo_name), (disk.clone_name, name)):
            warm[vg][0].rename(vg, old, new, limit_seconds=_left(deadline, plan))


def _left(deadline: Deadline, plan: RollbackPlan) -> float:
    if not deadline.left_seconds:
        why = f"LVM took longer than {deadline.seconds:g} s while it stood still"
        raise RollbackFailed(domain=plan.domain.name, id=plan.record.id, why=why)
    return deadline.left_seconds


def _thin(plan: RollbackPlan) -> Iterator[SwapDisk]:
    return (disk for disk in plan.disks if disk.kind is VolumeKind.THIN)


def _thick(plan: RollbackPlan) -> Iterator[SwapDisk]:
    return (disk for disk in plan.disks if disk.kind is VolumeKind.THICK)


def copy_back(lvm: Lvm, disks: Iterable[dict[str, Any]], progress: Progress) -> None:
    """Write the contents of their snapshots onto the thick disks, which nobody uses.

    May be done again from the start.  ``disks`` as the journal has them.  Raises
    ``StorageFailed``, ``RecordUnusable``, or ``VolumeRefused`` for one that somebody uses.
    """
    thick = [disk for disk in disks if rollbackjournal.is_thick(disk)]
    if not thick:
        return
    report = lvm.report()
    for disk in thick:
        snapshot = report.lv_from_uuid(disk["snapshot"], disk["vg"])
        current = report.lv_from_uuid(disk["current"], disk["vg"])
        if snapshot is None or current is None or not snapshot.is_snapshot_of(current):
            why = "its snapshot is gone in the middle of a rollback"
            raise RecordUnusable(path=f"{disk['vg']}/{disk['disk']}", why=why)
        if current.is_open:
            _wait_until_unused(lvm, current.ref)
        if not current.is_active:  # its snapshots have devices only together with it
            lvm.activate([current.ref])
        progress.phase(f"writing back {current.ref}")
        lvm.copy_back(snapshot.ref, current.ref, progress)


def _wait_until_unused(lvm: Lvm, disk: LvRef) -> None:
    """Let the last user of a disk go, a moment after its domain; raise ``VolumeRefused``.

    The kernel refuses none of what opens a device without asking to be alone, as QEMU does.
    """

    def look() -> None:
        volume = lvm.report().lv_of(disk)
        if volume is not None:
            occupancy.require_unused(volume)

    retry.unused(look)


def put_side_files_back(host: Host, record: Record, undo_id: SnapshotId, domain: Domain) -> None:
    """Give a domain that is off the UEFI variables and vTPM of a record, its own put aside.

    May be done again.  Raises ``StorageFailed`` or ``RecordUnusable``.
    """
    places = host.hypervisor.side_places(domain)
    if places:
        sidefiles.set_aside(host.catalog.aside(record.domain_uuid, undo_id), places)
        sidefiles.put_back(host.catalog.path(record, ""), record.side_files, places)


def settle(host: Host, set_: str, undo: Record, disks: Iterable[dict[str, Any]]) -> Record:
    """The bookkeeping after a rollback: former disks become the undo record, clones the disks.

    May be run again from wherever it stopped.  Returns the undo record as it is in the catalog; the
    journal is still there.
    """
    aside = host.catalog.aside(undo.domain_uuid, undo.id)
    with durable.failing_as_storage(aside):
        report = host.lvm.report()
        undo = replace(_keep_former(host.lvm, report, undo), side_files=sidefiles.stored_in(aside))
    host.catalog.put(undo, aside)
    _hand_over(host.lvm, report, set_, disks)
    return undo


def _keep_former(lvm: Lvm, report: Report, undo: Record) -> Record:
    """Make what holds the present a snapshot like any other; return the record that names it."""
    disks = tuple(
        _keep_thick(lvm, report, disk)
        if disk.kind is VolumeKind.THICK
        else _keep_thin(lvm, report, disk, undo)
        for disk in undo.disks
    )
    return replace(undo, disks=disks)


def _keep_thin(lvm: Lvm, report: Report, disk: DiskRecord, undo: Record) -> DiskRecord:
    """The former disk gets what snapshots have: no device, read-only, tagged."""
    former = report.lv_of(disk.snapshot)
    if former is not None and argv.set_tag(undo.set) not in former.tags:
        if former.is_active:
            lvm.deactivate([former.ref])
        whose = belonging.of(undo, disk.target)
        lvm.shelve(former.ref, belonging.tags(undo.set, disk.volume, Role.UNDO, whose))
    return disk


def _keep_thick(lvm: Lvm, report: Report, disk: DiskRecord) -> DiskRecord:
    """The snapshot made in the exchange has got its uuid by now, and is no work in progress."""
    kept = report.lv_from_name(disk.snapshot.vg, disk.snapshot.lv)
    if kept is None:
        return disk
    rolling = argv.role_tag(Role.ROLL)
    if rolling in kept.tags:
        lvm.retag([kept.ref], add=[argv.role_tag(Role.UNDO)], remove=[rolling])
    return replace(disk, snapshot=kept.ref)


def _hand_over(lvm: Lvm, report: Report, set_: str, disks: Iterable[dict[str, Any]]) -> None:
    """Make the clones ordinary disks: our tags off, the user's own tags on."""
    for disk in disks:
        if rollbackjournal.is_thick(disk):
            continue
        former = LvRef(vg=disk["vg"], lv=disk["disk"], uuid=disk["current"])
        clone = report.lv_from_name(disk["vg"], disk["disk"])
        is_ours = clone is not None and argv.set_tag(set_) in clone.tags
        whose = belonging.written(clone.tags) if clone is not None and is_ours else ()
        remove = (*argv.tags(set_, former, Role.ROLL), *whose)
        lvm.retag([former], add=disk["tags"], remove=remove)


def start_again(host: Host, domain: Domain, record: Record, *, paused: bool) -> DomainState:
    """Bring the domain into the state it was captured in, from memory where there is some.

    Raises ``CaptureFailed`` when it does not start.
    """
    paused = paused or record.state is DomainState.PAUSED
    if record.memory is not None:
        image = host.catalog.path(record, record.memory.file)
        channels = images.channels(record.memory)
        host.hypervisor.restore(domain, image, paused=paused, channels=channels)
    elif planning.is_started(domain, record):
        host.hypervisor.start(domain, paused=paused)
    else:
        return DomainState.SHUTOFF
    return DomainState.PAUSED if paused else DomainState.RUNNING


def give_up(
    host: Host,
    record: Record,
    journal: dict[str, Any],
    error: SnapvmError,
    settle: Callable[[], object],
) -> NotStarted:
    """End the rollback of a domain that does not start; return what is to be told of it.

    The journal stays while nothing else says what the domain is: xl forgets one that is off, and
    there is no image to start it from.  It stays, too, when the bookkeeping fails.
    """
    try:
        settle()
        if record.memory is None and journal.get("definition") and _is_unknown(host, record):
            return not_started(record, error, f"or start it; then: {repairing(record.domain)}")
        host.catalog.end_journal(record.domain_uuid, JOURNAL)
    except SnapvmError as left:
        log.warning("after the rollback to %s there is left: %s", record.ref, left)
        return not_started(record, error, f"then: {repairing(record.domain)}")
    return not_started(record, error, f"then: snapvm rollback {shlex.quote(record.ref)}")


def _is_unknown(host: Host, record: Record) -> bool:
    try:
        host.hypervisor.find(record.domain)
    except UnknownDomain:
        return True
    return False


def repairing(name: str) -> str:
    """Return what to type to have the rollback of a domain finished."""
    return f"snapvm repair {shlex.quote(name)}"


def not_started(record: Record, error: SnapvmError, next_: str) -> NotStarted:
    """Return the failure of a domain that is off on the disks of a record."""
    return NotStarted(
        domain=record.domain,
        id=record.id,
        why=str(error),
        remedy=f"mend the cause, {next_}",
    )
