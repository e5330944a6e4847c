"""The order of things: the only module that knows what comes before what.

*Take*: everything is checked and written down; the domain stands still; memory and every disk are
caught; the domain runs; what was caught is brought to the disk; the record becomes visible.

*Rollback*: everything is checked and written down; a clone of every snapshot is made; the domain
stands still; names are swapped, so that the clones are the disks; only then, past everything that
can fail and be put back, the domain is ended and restored.  Renaming below a domain that stands
still costs it nothing: it holds the device and not the name, and runs on when a rename fails.

*Delete*: the record becomes invisible, then its volumes go, then its image.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from snapvm import images, repair, swapping, taking
from snapvm.catalog import Draft
from snapvm.clock import WindowClock
from snapvm.errors import (
    CaptureFailed,
    CommandFailed,
    CommandTimedOut,
    LeftBehind,
    NotStarted,
    VolumeRefused,
)
from snapvm.host import Host
from snapvm.interrupt import undisturbed
from snapvm.lvm import argv
from snapvm.model import DomainState, Progress, Record, Role
from snapvm.planning import RollbackPlan, TakePlan
from snapvm.swapping import Phase
from snapvm.taking import Caught, TakeRequest
from snapvm.undo import Undo

log = logging.getLogger(__name__)

Journal = dict[str, Any]

__all__ = [
    "Host",
    "RollbackDone",
    "TakeRequest",
    "delete",
    "plan_rollback",
    "repair_all",
    "rollback",
    "take",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackDone:
    """What a rollback did."""

    record: Record
    undo: Record
    state: DomainState
    seconds: float


def take(host: Host, request: TakeRequest, progress: Progress) -> Record:
    """Capture a domain's memory and disks at one instant, and record the pair.

    Raises ``Refused`` before anything is touched, ``Locked``, ``Interrupted``, and for a failure
    after which everything was put back ``SnapshotFailed``, ``CaptureFailed`` or ``WindowBroken``.
    """
    progress.phase("checking")
    domain = host.hypervisor.find(request.domain)
    with host.catalog.locked(domain.uuid, domain.name), host.guarded(domain) as guard:
        repair.finish_pending(host, domain.uuid, domain.name)
        plan = taking.plan(host, host.hypervisor.find(request.domain), request)
        clock = WindowClock()
        with Undo() as undo:
            guard.wait_until_ready()
            draft = host.catalog.draft(domain.uuid, plan.id)
            undo.add(f"the folder of {plan.id}", lambda: host.catalog.discard(draft))
            host.catalog.begin(draft, domain.name, taking.intent(plan))
            caught = _catch(host, plan, draft, undo, clock, progress)
            _seal(plan, draft, caught)
            with undisturbed():
                record = taking.record(host, plan, caught, clock)
                host.catalog.commit(draft, record)
                undo.disarm()
                _mark_complete(host, record)
    return record


def _catch(
    host: Host, plan: TakePlan, draft: Draft, undo: Undo, clock: WindowClock, progress: Progress
) -> Caught:
    """Prepare, freeze, snapshot, thaw, drain: the domain runs again before anything is undone."""
    capturing = host.hypervisor.capture(
        plan.domain,
        draft.folder,
        image=images.new_image(plan.domain.hypervisor) if plan.with_memory else None,
        clock=clock,
        progress=progress,
    )
    with capturing as capture:
        _undo_volumes(host, plan, undo, Role.NEW)
        with host.lvm.warmed(plan.groups) as lvms, capture.window():
            created = datetime.now(UTC)
            progress.phase("making snapshots")
            taking.catch(host, plan, lvms, capture, clock)
        progress.phase("writing memory")
        memory = capture.drain()
        method = capture.method
    progress.phase("checking what was caught")
    disks = taking.verified(host, plan)
    return Caught(created=created, method=method, memory=memory, disks=disks)


def _undo_volumes(host: Host, plan: TakePlan | RollbackPlan, undo: Undo, role: Role) -> None:
    """Register, before any is made, that the plan's volumes of this role go, group by group."""
    for vg in plan.groups:
        undo.add(f"the {role} volumes in {vg}", partial(host.lvm.remove_set, vg, plan.set, (role,)))


def _seal(plan: TakePlan, draft: Draft, caught: Caught) -> None:
    """Make the image itself say whether its domain runs when anyone restores it."""
    if caught.memory is not None:
        running = plan.domain.state is DomainState.RUNNING
        images.seal(draft.folder / caught.memory.file, caught.memory, running=running)


def _mark_complete(host: Host, record: Record) -> None:
    """Correct the tags; the record is what counts, and repair corrects them too."""
    try:
        host.lvm.retag(
            [disk.snapshot for disk in record.disks],
            add=[argv.role_tag(Role.OK)],
            remove=[argv.role_tag(Role.NEW)],
        )
    except (CommandFailed, CommandTimedOut) as error:
        log.warning("the volumes of %s keep the tags of a take under way: %s", record.ref, error)


def plan_rollback(host: Host, record: Record) -> RollbackPlan:
    """Prove every precondition of a rollback; nothing is touched."""
    return swapping.plan(host, record)


def rollback(host: Host, plan: RollbackPlan, *, paused: bool, progress: Progress) -> RollbackDone:
    """Bring a record's memory and disks back together; keep what is current as an undo record.

    Until the last rename is done a failure leaves the domain running as before.  Raises as
    ``take`` does, and ``NotStarted`` when the disks are back but the domain does not start.
    """
    begun = time.monotonic()
    record = plan.record
    uuid, name = record.domain_uuid, record.domain
    with host.catalog.locked(uuid, name), host.guarded(plan.domain) as guard:
        repair.finish_pending(host, uuid, name)
        progress.phase("checking")
        plan = swapping.plan(host, host.catalog.get(record.domain_uuid, record.id))
        former = swapping.undo_record(plan)
        journal = swapping.journal(plan, former, paused=paused)
        with Undo() as undo:
            guard.wait_until_ready()
            _prepare_swap(host, plan, journal, undo, progress)
            with undisturbed():
                _exchange(host, plan, undo, progress)
                state = _go_on(host, plan, journal, former, progress)
    return RollbackDone(record=record, undo=former, state=state, seconds=time.monotonic() - begun)


def _prepare_swap(
    host: Host, plan: RollbackPlan, journal: Journal, undo: Undo, progress: Progress
) -> None:
    """Write down what is intended and make everything that can be made beside a running domain."""
    uuid = plan.record.domain_uuid
    undo.add("the journal of the rollback", lambda: host.catalog.end_rollback(uuid))
    host.catalog.write_rollback(uuid, journal)
    progress.phase("cloning the disks")
    _undo_volumes(host, plan, undo, Role.ROLL)
    swapping.make_clones(host.lvm, plan)
    undo.add(
        "the names of the disks",
        lambda: swapping.put_names_back(host.lvm, plan.set, journal["disks"]),
    )


def _exchange(host: Host, plan: RollbackPlan, undo: Undo, progress: Progress) -> None:
    """Swap names below the standing domain, then end it: the point of no return."""
    progress.phase("exchanging the disks")
    with host.hypervisor.frozen(plan.domain):
        swapping.swap_names(host.lvm, plan)
        host.hypervisor.stop(plan.domain)
        undo.disarm()


def _go_on(
    host: Host, plan: RollbackPlan, journal: Journal, former: Record, progress: Progress
) -> DomainState:
    """Past the point of no return: start the domain, then the bookkeeping, whatever happened."""
    uuid, paused = plan.record.domain_uuid, bool(journal["paused"])
    host.catalog.write_rollback(uuid, {**journal, "phase": Phase.SWAPPED.value})
    progress.phase("starting the domain")
    failure = None
    state = DomainState.SHUTOFF
    try:
        state = swapping.start_again(host, plan.domain, plan.record, paused=paused)
    except CaptureFailed as error:
        failure = error
    host.catalog.write_rollback(uuid, {**journal, "phase": Phase.STARTED.value})
    progress.phase("keeping what was current")
    swapping.settle(host, plan.set, former, journal["disks"])
    if failure is not None:
        raise NotStarted(
            domain=plan.domain.name,
            id=plan.record.id,
            why=str(failure),
            remedy=f"mend the cause, then: snapvm rollback {plan.record.ref}",
        ) from failure
    return state


def repair_all(host: Host, name: str | None, progress: Progress) -> tuple[str, ...]:
    """Finish or take back what killed commands left, of one domain or of all; return what was done.

    Raises ``UnknownSnapshot`` for a domain without records and ``LeftBehind``.
    """
    domains = [(uuid, known) for uuid, known in host.catalog.domains() if name in (None, known)]
    done: list[str] = []
    for uuid, known in domains:
        progress.phase(f"looking after {known}")
        with host.catalog.locked(uuid, known):
            done += repair.finish_pending(host, uuid, known)
            done += repair.correct_tags(host, uuid)
    if name is None:
        done += repair.remove_orphans(host)
    return tuple(done)


def delete(host: Host, records: Sequence[Record], progress: Progress) -> None:
    """Delete snapshots: each becomes invisible first, then its volumes and its image go.

    Raises ``VolumeRefused`` before anything is touched when a volume is in use.
    """
    for record in records:
        with host.catalog.locked(record.domain_uuid, record.domain):
            repair.finish_pending(host, record.domain_uuid, record.domain)
            progress.phase(f"deleting {record.ref}")
            _check_unused(host, record)
            with undisturbed():
                _delete(host, record)


def _check_unused(host: Host, record: Record) -> None:
    report = host.lvm.report()
    for disk in record.disks:
        volume = report.lv_from_uuid(disk.snapshot.uuid)
        if volume is not None and volume.is_open:
            raise VolumeRefused(
                volume=str(volume.ref),
                why=f"it belongs to {record.ref} and is in use",
                remedy=f"look for its user with `lsblk {volume.ref.path}`",
            )


def _delete(host: Host, record: Record) -> None:
    gone = host.catalog.hide(record)
    try:
        host.lvm.remove([disk.snapshot for disk in record.disks])
    except CommandFailed as error:
        raise LeftBehind(leftovers=(f"volumes of {record.ref}",), why=str(error)) from error
    host.catalog.forget(gone)
