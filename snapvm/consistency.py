"""The order of things: the only module that knows what comes before what.

*Take*: everything is checked and written down; the domain stands still; memory and every disk are
caught; the domain runs; what was caught is brought to the disk; the record becomes visible.

*Rollback*: everything is checked and written down; what is current is kept, what was is put in its
place (``snapvm.goingback``).

*Delete*: all are checked; each becomes invisible, then its volumes go, then its image.  *Prune* is
the same, each domain by itself (``snapvm.deleting``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from snapvm import (
    guestsystem,
    identity,
    images,
    readback,
    recordeddomain,
    repair,
    rollbackplan,
    severalfailures,
    snapshotting,
    standing,
    stopping,
    taking,
    turns,
)
from snapvm.askedfor import Asked, mended
from snapvm.attention import LeftBehind
from snapvm.catalog import Draft
from snapvm.clock import WindowClock
from snapvm.deleting import delete, prune
from snapvm.errors import SnapvmError
from snapvm.failures import PausedMeanwhile, RollbackFailed, saying
from snapvm.goingback import GoingBack, RollbackDone
from snapvm.host import Host
from snapvm.hypervisor.base import Capture
from snapvm.interrupt import (
    nothing_is_left,
    undisturbed,
    unstoppable,
    what_is_done_stays,
)
from snapvm.lvm import crew
from snapvm.model import Domain, DomainState, Progress, Record, Role
from snapvm.planning import RollbackPlan, TakePlan
from snapvm.refusals import DomainRefused
from snapvm.severalfailures import noting
from snapvm.takejournal import TakeJournal
from snapvm.taking import Caught, TakeRequest
from snapvm.undo import Removes, Undo

__all__ = [
    "Host",
    "RollbackDone",
    "TakeRequest",
    "delete",
    "plan_rollback",
    "prune",
    "rehearse_rollback",
    "repair_all",
    "rollback",
    "take",
]


@saying("nothing was kept, and the domain is as it was")
def take(host: Host, request: TakeRequest, progress: Progress) -> Record:
    """Capture a domain's memory and disks at one instant, and record the pair.

    Raises ``Refused`` before anything is touched, ``Locked``, ``Interrupted``, and for a failure
    after which everything was put back ``SnapshotFailed``, ``CaptureFailed`` or ``WindowBroken``;
    ``LeftBehind`` or ``StuckPaused`` when that failed too.  With ``stop`` the record may be whole
    and the domain not stopped: ``NotStopped``.
    """
    progress.phase("checking")
    domain = host.hypervisor.find(request.domain)
    locked = identity.locked(host.catalog, domain, progress)
    with locked as uuids, host.guarded(domain) as guard:
        progress.phase("checking")
        repair.finish_all(host, uuids, domain.name)
        plan = taking.plan(host, _found_again(host, domain), request)
        clock = WindowClock()
        draft = host.catalog.draft(domain.uuid, plan.id)
        with _noting_who_stands(host, plan, draft), Undo() as undo:
            guard.wait_until_ready()
            undo.add(
                f"the folder of {plan.id}",
                partial(host.catalog.discard, draft),
                removes=Removes.JOURNAL,
            )
            host.catalog.begin(draft, domain.name, TakeJournal.of_plan(plan).as_dict())
            caught = _catch(host, plan, draft, undo, clock, progress)
            caught = taking.laid_out(plan, draft.folder, caught, progress)
            caught = taking.sealed(plan, draft.folder, caught, progress)
            with undisturbed():
                record = taking.record(plan, caught, clock)
                if plan.stop:
                    stopping.intend(host, plan, undo)
                host.catalog.commit(draft, record)
                undo.disarm()
                taking.mark_complete(host, record)
                if plan.stop:
                    stopping.carry_out(host, plan)
                nothing_is_left()
    return record


def _found_again(host: Host, known: Domain) -> Domain:
    """Return a domain as it is under its lock, which may have been waited for.

    Raises ``UnknownDomain``, and ``DomainRefused`` when the lock is another's by now.
    """
    domain = host.hypervisor.find(known.name)
    if domain.uuid != known.uuid:
        raise DomainRefused(
            domain=domain.name,
            why=f"it was defined anew meanwhile (its uuid was {known.uuid}, and is {domain.uuid})",
            remedy="take the snapshot again: the lock held was that of the former domain",
        )
    return domain


def _catch(
    host: Host, plan: TakePlan, draft: Draft, undo: Undo, clock: WindowClock, progress: Progress
) -> Caught:
    """Prepare, freeze, snapshot, thaw, drain: the domain runs again before anything is undone."""
    settings = host.settings
    image = images.new_image(
        plan.domain.hypervisor,
        settings.run_dir,
        settings.compress,
        is_interim=plan.sparse,
        domain_ends=plan.stop,
    )
    capturing = host.hypervisor.capture(
        plan.domain,
        draft.folder,
        image=image if plan.with_memory else None,
        clock=clock,
        progress=progress,
        domain_ends=plan.stop,
    )
    # A guest whose memory is on its way out waits for pages that nobody takes.
    with unstoppable(), capturing as capture:
        for what, removal in host.lvm.removals(plan.groups, plan.set, Role.NEW):
            undo.add(what, removal, removes=Removes.PART)
        undo.add("its disks' devices", partial(host.lvm.wake, [disk.volume for disk in plan.disks]))
        snapshotting.make_stores(host, plan)
        with (
            host.lvm.warmed(crew.needed(disk.volume.vg for disk in plan.disks)) as lvms,
            _turns_taken(host, plan, capture, progress),
            standing.tried_again(host, plan.domain, undo),
            guestsystem.held_still(host, plan, undo) as freeze,
            standing.running_when_interrupted(host, plan.domain),
            capture.window(leave_standing=plan.stop, freeze=freeze),
        ):
            if plan.stop and plan.domain.state is DomainState.RUNNING:
                name = plan.domain.name
                undo.add(f"the running state of {name}", partial(standing.run_again, host, name))
            created = datetime.now(UTC)
            progress.phase("making snapshots")
            held = snapshotting.catch(host, plan, lvms, capture, clock)
            if plan.stop:
                clock.left_standing()
        if not plan.stop:
            _note_let_go(host, plan, draft)
        progress.phase("writing memory")
        memory = capture.drain()
        method = capture.method
    sides = snapshotting.stored(plan, draft.folder, held, has_memory=memory is not None)
    progress.phase("verifying the snapshots")
    disks = snapshotting.verified(host, plan)
    return Caught(created=created, method=method, memory=memory, disks=disks, side_files=sides)


def _turns_taken(
    host: Host, plan: TakePlan, capture: Capture, progress: Progress
) -> AbstractContextManager[None]:
    """Have the turn in the groups of a plan, where a window is not the longer for the wait."""
    if not capture.is_brief:
        return nullcontext()
    progress.phase("waiting for others at work in its volume groups")
    return turns.taken(host.settings.run_dir, plan.groups)


@contextmanager
def _noting_who_stands(host: Host, plan: TakePlan, draft: Draft) -> Iterator[None]:
    """When a failure leaves the journal, have it say that the domain is as its owner wants it.

    The next command then only removes what was left, and does not resume what he has paused since.
    """
    try:
        yield
    except LeftBehind as error:
        with suppress(SnapvmError):
            domain = standing.find(host, plan.domain.name)
            is_owners = isinstance(error.__cause__, PausedMeanwhile)
            if is_owners or domain is None or domain.state not in standing.STATES:
                _note_let_go(host, plan, draft)
        raise


def _note_let_go(host: Host, plan: TakePlan, draft: Draft) -> None:
    """Have the journal say that a domain that stands still from now on does so for its owner."""
    host.catalog.amend(draft, TakeJournal.of_plan(plan).when_let_go().as_dict())


def plan_rollback(
    host: Host,
    record: Record,
    progress: Progress,
    asked: Asked = Asked(),  # noqa: B008 - it is frozen
) -> RollbackPlan:
    """Prove every precondition of a rollback; nothing is touched but what has to be mended first.

    The disks of a domain may be without their names until then.  Raises as ``rollback`` does.
    """
    with mended(host, record, progress, asked):
        return rollbackplan.plan(host, record)


def rehearse_rollback(
    host: Host, record: Record, progress: Progress, *, verify: bool, asked: Asked
) -> RollbackPlan:
    """Prove all that a rollback proves before it touches anything, and touch nothing.

    With ``verify`` the memory image is read, too.  Raises as ``rollback`` does then, and
    ``DomainRefused`` while something of the domain has to be mended first.
    """
    with identity.locked(host.catalog, record, progress) as uuids:
        repair.require_none_pending(host, uuids, record.domain)
        asked.require_meant(record)
        progress.phase("checking")
        read = readback.of_record(host.catalog, record, progress, is_wanted=verify)
        with read as require_right:
            plan = rollbackplan.plan(host, host.catalog.again(record))
            require_right()
    return plan


@saying(RollbackFailed.remedy)
def rollback(
    host: Host,
    record: Record,
    *,
    paused: bool,
    progress: Progress,
    verify: bool = True,
    set_time: bool = True,
    asked: Asked = Asked(),  # noqa: B008 - it is frozen
) -> RollbackDone:
    """Bring a record's memory and disks back together; keep what is current as an undo record.

    With ``verify`` all of its memory image is read and compared with its checksum, beside the
    checks and the making of what replaces the disks: nothing that runs is touched before it is
    known to be right.
    With ``set_time`` the clock of a guest whose memory came back is set, where it has an agent.
    ``asked`` is what it was asked for as.
    Until the last rename is done a failure leaves the domain running as before.  Raises as
    ``take`` does, ``SnapshotReplaced``, ``UnknownSnapshot``, ``UndoUnclear`` and ``MeansAnother``,
    and ``NotStarted`` when the disks are back but the domain does not start.
    """
    begun = time.monotonic()
    with mended(host, record, progress, asked):
        progress.phase("checking")
        # The journal is kept with the record, whatever uuid the domain has now.
        known = replace(recordeddomain.find(host, record), uuid=record.domain_uuid)
        record = host.catalog.again(record)
        with (
            host.guarded(known) as guard,
            readback.of_record(host.catalog, record, progress, is_wanted=verify) as require_right,
        ):
            plan = rollbackplan.plan(host, record)
            asked.require_as_told(plan.domain)
            going = GoingBack.of(host, plan, progress, paused=paused, set_time=set_time)
            done = going.carry_out(guard, require_right)
    return replace(done, seconds=time.monotonic() - begun)


def repair_all(
    host: Host,
    name: str | None,
    progress: Progress,
    *,
    forget_missing: bool = False,
    take_over: bool = False,
) -> tuple[str, ...]:
    """Finish or take back what killed commands left, of one domain or of all; return what was done.

    What a volume group has that is away is left behind with ``forget_missing``; what another
    host began is dealt with only with ``take_over``.

    What is wrong with one domain keeps none from being looked after; the worst of it is raised at
    the end, such as ``LeftBehind``, ``JournalUnusable`` or ``Locked``, and the rest is logged; what
    was done is in its ``mended``.
    Raises ``UnknownDomain`` for one that neither has snapshots nor is known to its hypervisor.
    An interruption ends it, and is what is raised unless something is left to be seen to.
    """
    domains = dict(identity.chosen(host.catalog, host.hypervisor, name))
    if name is None:  # one without snapshots may have had a `doctor`
        domains = {uuid: uuid for uuid in host.hypervisor.touched()} | domains
    done: list[str] = []
    failures: list[SnapvmError] = []
    try:
        with severalfailures.above_a_signal(failures), what_is_done_stays():
            for uuid, known in domains.items():
                progress.phase(f"repairing {known}")
                with noting(failures), host.catalog.locked(uuid, known):
                    done += repair.finish_pending(
                        host, uuid, known, forget_missing=forget_missing, take_over=take_over
                    )
                    done += repair.correct_tags(host, uuid)
                    done += repair.set_back(host, uuid, known)
            if name is None:
                with noting(failures):
                    done += repair.remove_orphans(host, failures)
        nothing_is_left()
        if failures:
            raise severalfailures.worst(failures)
    except SnapvmError as failure:
        failure.mended = tuple(done)
        raise
    return tuple(done)
