"""The steps of a rollback; ``snapvm.goingback`` knows their order.

Thin: a clone of the snapshot takes the name of the disk, and what had the name is kept under
another.  Thick: the present is kept by one more snapshot, and what the chosen one holds is written
back.  Either way the snapshot stays, the present is not lost, and any snapshot can be gone back to
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from snapvm import (
    durable,
    imagereading,
    images,
    planning,
    sidefiles,
    standing,
    writingback,
)
from snapvm.attention import NotStarted
from snapvm.clock import Deadline
from snapvm.errors import SnapvmError, typed
from snapvm.failures import RollbackFailed
from snapvm.host import Host
from snapvm.lvm import argv, belonging, preflight
from snapvm.lvm.crew import Crews
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import EFFECT_LIMIT_SECONDS, Lvm
from snapvm.lvm.warm import can_be_told
from snapvm.model import (
    DiskRecord,
    Domain,
    DomainState,
    DomainUuid,
    LvRef,
    Progress,
    Record,
    Role,
    Silent,
    SnapshotId,
    VolumeKind,
)
from snapvm.planning import RollbackPlan
from snapvm.recordfolder import Work
from snapvm.rollbackjournal import JournalDisk, RollbackJournal

log = logging.getLogger(__name__)


def prepare(lvm: Lvm, warm: Crews, plan: RollbackPlan, undo: Record) -> None:
    """Make what is going to be a thin disk, with a device, and what a thick one's present needs."""
    for disk in plan.thin_disks:
        tags = belonging.tags(plan.set, disk.current, Role.ROLL, belonging.of(undo, disk.target))
        tags += disk.user_tags  # lvm.conf's volume_list may give a device to what has them alone
        what = (disk.snapshot, disk.clone_name, tags, disk.read_ahead)
        if can_be_told(argv.thin_clone(*what)):
            warm[disk.current.vg][0].clone(*what, limit_seconds=EFFECT_LIMIT_SECONDS)
        else:
            lvm.clone(*what)
    for disk in plan.thick_disks:
        tags = belonging.tags(plan.set, disk.current, Role.ROLL, belonging.of(undo, disk.target))
        lvm.make_store(disk.current.vg, disk.undo_name, disk.store_bytes, tags)


def exchange(warm: Crews, plan: RollbackPlan, deadline: Deadline) -> None:
    """Keep the present of every disk: of a thin one by renaming, of a thick one by a snapshot.

    Raises ``RollbackFailed`` when the time is over before all of it is done: the domain stands
    still meanwhile.
    """
    for disk in plan.thick_disks:
        limit_seconds = _left(deadline, plan)
        warm[disk.current.vg][0].attach(
            disk.current, disk.undo_name, disk.chunk_bytes, limit_seconds=limit_seconds
        )
    for disk in plan.thin_disks:
        vg, name = disk.current.vg, disk.current.lv
        for old, new in ((name, disk.undo_name), (disk.clone_name, name)):
            warm[vg][0].rename(vg, old, new, limit_seconds=_left(deadline, plan))


def _left(deadline: Deadline, plan: RollbackPlan) -> float:
    if not deadline.left_seconds:
        why = f"LVM took longer than {deadline.seconds:g} s while it stood still"
        raise RollbackFailed(domain=plan.domain.name, id=plan.record.id, why=why)
    return deadline.left_seconds


def activate(lvm: Lvm, disks: Iterable[JournalDisk]) -> None:
    """Give devices to the volumes that have the disks' names; after a boot they may have none."""
    report = lvm.report()
    named = (report.lv_from_name(disk.vg, disk.name) for disk in disks)
    idle = [volume.ref for volume in named if volume is not None and not volume.is_active]
    if idle:
        lvm.activate(idle)


def set_side_files_aside(host: Host, uuid: DomainUuid, undo_id: SnapshotId, domain: Domain) -> None:
    """Keep the UEFI variables and vTPM of a domain that stands still or is off.

    Of one that is transient libvirt removes the vTPM when it ends.  May be done again.
    """
    places = host.hypervisor.side_places(domain)
    if places:
        sidefiles.set_aside(host.catalog.aside(uuid, undo_id), places)


def put_side_files_back(host: Host, record: Record, undo_id: SnapshotId, domain: Domain) -> None:
    """Give a domain that is off the UEFI variables and vTPM of a record, its own put aside.

    May be done again.  Raises ``StorageFailed`` or ``RecordUnusable``.
    """
    set_side_files_aside(host, record.domain_uuid, undo_id, domain)
    places = host.hypervisor.side_places(domain)
    if places:
        sidefiles.put_back(
            host.catalog.folder(record.domain_uuid, record.id), record.side_files, places
        )


def take_side_files_back(host: Host, uuid: DomainUuid, undo_id: SnapshotId, domain: Domain) -> None:
    """Give a domain that is off its own again, where ``put_side_files_back`` put them aside."""
    aside = host.catalog.aside(uuid, undo_id)
    with durable.failing_as_storage(aside):
        kept = sidefiles.stored_in(aside) if durable.is_there(aside) else None
    if kept is not None:
        sidefiles.put_back(aside, kept, host.hypervisor.side_places(domain))
        host.catalog.forget(aside)


def settle(host: Host, set_: str, undo: Record, disks: Collection[JournalDisk]) -> Record:
    """Do the books after a rollback: former disks become the undo record, clones the disks.

    May be run again from wherever it stopped.  Returns the undo record as it is in the catalog,
    unless all of it was deleted since; the journal is still there.  Raises ``DiskMissing``: what
    LVM does not show just now is not gone.
    """
    aside = host.catalog.aside(undo.domain_uuid, undo.id)
    with durable.failing_as_storage(aside):
        report = host.lvm.report()
        host.lvm.mark_lost(report)
        for disk in disks:
            writingback.require_shown(report, disk)
        undo = replace(_keep_former(host.lvm, report, undo), side_files=sidefiles.stored_in(aside))
    if any(report.lv_of(disk.snapshot) is not None for disk in undo.disks):
        host.catalog.put(undo, aside)
    else:
        host.catalog.forget(aside)
    _hand_over(host.lvm, report, set_, disks)
    host.lvm.bring_to_disk(disk.former for disk in disks)  # what has its name now
    return undo


def _keep_former(lvm: Lvm, report: Report, undo: Record) -> Record:
    """Make what holds the present a snapshot like any other; return the record that names it."""
    _shelve(lvm, report, undo)
    disks = tuple(
        _keep_thick(lvm, report, undo.set, disk)
        if disk.kind is VolumeKind.THICK
        else _as_it_is(report, disk)
        for disk in undo.disks
    )
    return replace(undo, disks=disks)


def _as_it_is(report: Report, disk: DiskRecord) -> DiskRecord:
    """Return a former thin disk with the size it has: it may have grown since it was planned.

    The image is read before the exchange, for an hour if it is large.
    """
    volume = report.lv_of(disk.snapshot)
    return disk if volume is None else replace(disk, size_bytes=volume.disk_bytes)


def _shelve(lvm: Lvm, report: Report, undo: Record) -> None:
    """Give former thin disks what snapshots have: no device, read-only, tagged."""
    former = [
        (disk, volume)
        for disk in undo.disks
        if disk.kind is not VolumeKind.THICK
        and (volume := report.lv_of(disk.snapshot)) is not None
        and argv.set_tag(undo.set) not in volume.tags
    ]
    if active := [volume.ref for _, volume in former if volume.is_active]:
        lvm.deactivate(active)
    for disk, volume in former:
        whose = belonging.of(undo, disk.target)
        lvm.shelve(volume.ref, belonging.tags(undo.set, disk.volume, Role.UNDO, whose))


def _keep_thick(lvm: Lvm, report: Report, set_: str, disk: DiskRecord) -> DiskRecord:
    """Make the snapshot of a thick disk's present a kept one, and note the uuid that it has now."""
    kept = writingback.present_of(report, set_, disk.volume)
    if kept is None:
        what = "the former contents of disk %s are not kept: %s is gone"
        log.warning(what, disk.target, disk.snapshot)
        return disk
    if kept.is_lost:
        what = "the former contents of disk %s are lost: %s, %s"
        log.warning(what, disk.target, kept.ref, preflight.loss(kept))
    rolling = argv.role_tag(Role.ROLL)
    if rolling in kept.tags:
        lvm.retag([kept.ref], add=[argv.role_tag(Role.UNDO)], remove=[rolling])
    return replace(disk, snapshot=kept.ref)


def _hand_over(lvm: Lvm, report: Report, set_: str, disks: Collection[JournalDisk]) -> None:
    """Make the clones ordinary disks: our tags off, the user's own tags on.

    The tags go last, for what has none of ours was handed over already, or is somebody else's.
    Disks that get the same tags share a command, since each command has to read the groups.
    """
    clones = [
        (disk, clone)
        for disk in disks
        if not disk.is_thick
        and (clone := report.lv_from_name(disk.vg, disk.name)) is not None
        and argv.set_tag(set_) in clone.tags
    ]
    if kept := [disk.former for disk, _ in clones if disk.not_at_boot]:
        lvm.keep_from_boot(kept)
    if skipped := [disk.former for disk, _ in clones if disk.is_skipped]:
        lvm.skip_activation(skipped)
    removed: dict[tuple[str, ...], dict[str, None]] = {}
    its: dict[tuple[str, ...], list[LvRef]] = {}
    for disk, clone in clones:
        tags = (*argv.tags(set_, disk.former, Role.ROLL), *belonging.written(clone.tags))
        removed.setdefault(disk.user_tags, {}).update(dict.fromkeys(tags))
        its.setdefault(disk.user_tags, []).append(disk.former)
    for added, handed in its.items():
        lvm.retag(handed, add=added, remove=removed[added])


def start_again(
    host: Host, domain: Domain, record: Record, progress: Progress, *, paused: bool
) -> DomainState:
    """Bring the domain into the state it was captured in, from memory where there is some.

    Raises ``DomainFailed`` when it does not start.
    """
    paused = paused or record.state is DomainState.PAUSED
    if record.memory is not None:
        image = host.catalog.path(record, record.memory.file)
        channels = images.channels(record.memory)
        progress.phase(f"restoring the memory of {domain.name}")
        # Several threads read in several places: no single number says how far they are.
        with imagereading.shown(progress if channels == 1 else Silent(), image):
            host.hypervisor.restore(domain, image, paused=paused, channels=channels)
    elif planning.is_started(domain, record):
        host.hypervisor.start(domain, paused=paused)
    else:
        return DomainState.SHUTOFF
    return DomainState.PAUSED if paused else DomainState.RUNNING


def give_up(
    host: Host,
    record: Record,
    journal: RollbackJournal,
    error: SnapvmError,
    settle: Callable[[], object],
) -> NotStarted:
    """End the rollback of a domain that does not start; return what is to be told of it.

    The journal stays while nothing else says what the domain is: xl forgets one that is off, and
    there is no image to start it from.  It stays, too, when the bookkeeping fails.
    """
    try:
        settle()
        has_definition_alone = record.memory is None and journal.definition
        if has_definition_alone and standing.find(host, record.domain) is None:
            return not_started(record, error, f"or start it; then: {repairing(record.domain)}")
        host.catalog.end_journal(record.domain_uuid, Work.ROLLBACK)
    except SnapvmError as left:
        log.warning("the rollback to %s could not be concluded: %s", record.ref, left)
        return not_started(record, error, f"then: {repairing(record.domain)}")
    again, back = typed("rollback", record.ref), typed("undo", record.domain)
    return not_started(record, error, f"then: {again}; or go back to its former disks: {back}")


def repairing(name: str) -> str:
    """Return what to type to have the rollback of a domain finished."""
    return typed("repair", name)


def not_started(record: Record, error: SnapvmError, next_: str) -> NotStarted:
    """Return the failure of a domain that is off on the disks of a record."""
    return NotStarted(
        domain=record.domain,
        id=record.id,
        why=str(error),
        remedy=f"fix the cause, {next_}",
    )
