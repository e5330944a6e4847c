"""The order of a rollback that has been decided on; ``snapvm.swapping`` has its steps.

A clone of every thin snapshot is made; the domain stands still; names are swapped, so that the
clones are the disks, and thick disks are snapshotted; only then, past everything that can fail and
be put back, the domain is ended, thick disks are written back, and it is restored.  Renaming below
a domain that stands still costs it nothing: it holds the device and not the name, and runs on when
a rename fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from snapvm import (
    guestsystem,
    imageroom,
    newdisks,
    rollbackjournal,
    rollbackplan,
    standing,
    swapping,
    takingback,
    writingback,
)
from snapvm.attention import HalfBack, LeftBehind
from snapvm.clock import Deadline
from snapvm.domainrun import DomainRun
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.failures import RollbackFailed
from snapvm.guard import Guard
from snapvm.guestsystem import Awakened
from snapvm.host import Host
from snapvm.interrupt import nothing_is_left, undisturbed, unstoppable
from snapvm.lvm.crew import Crews
from snapvm.lvm.report import Report
from snapvm.model import DomainState, Progress, Record, Role
from snapvm.planning import RollbackPlan
from snapvm.recordfolder import Work
from snapvm.refusals import Refused
from snapvm.rollbackjournal import JournalDisk, Phase, RollbackJournal
from snapvm.undo import Removes, Undo
from snapvm.workers import workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackDone:
    """What a rollback did."""

    plan: RollbackPlan
    undo: Record
    state: DomainState
    guest: Awakened
    seconds: float


@dataclass(frozen=True, slots=True)
class GoingBack:
    """A rollback that is decided, and what its journal and its undo record are going to be."""

    host: Host
    plan: RollbackPlan
    former: Record
    journal: RollbackJournal
    progress: Progress

    @classmethod
    def of(
        cls, host: Host, plan: RollbackPlan, progress: Progress, *, paused: bool, set_time: bool
    ) -> GoingBack:
        """Decide how it is done; nothing is touched."""
        former = rollbackplan.undo_record(plan)
        journal = RollbackJournal.of_plan(plan, former, paused=paused, set_time=set_time)
        return cls(host, plan, former, journal, progress)

    @property
    def disks(self) -> tuple[JournalDisk, ...]:
        """Its disks, as whoever has to finish it would find them in the journal."""
        return self.journal.disks

    def carry_out(self, guard: Guard, require_right: Callable[[], None]) -> RollbackDone:
        """Go back; until the last rename is done a failure leaves the domain running as before.

        ``require_right`` raises when the memory image is not what it was: that takes the longest.
        """
        with Undo() as undo, self.host.lvm.warmed(self.plan.groups) as warm:
            guard.wait_until_ready()
            self._prepare(warm, undo)
            require_right()
            known = writingback.known_before(self.host.lvm, self.plan)
            return self.as_it_is_now().past_return(warm, undo, known)

    def _prepare(self, warm: Crews, undo: Undo) -> None:
        """Write down what is intended, and make all that can be made beside a running domain."""
        host, plan = self.host, self.plan
        undo.add("the journal", self._end_journal, removes=Removes.JOURNAL)
        self._write_down(self.journal)
        self.progress.phase("preparing the disks")
        for what, removal in host.lvm.removals(plan.groups, plan.set, Role.ROLL):
            undo.add(what, removal)
        swapping.prepare(host.lvm, warm, plan, self.former)
        newdisks.require_devices(host.lvm, plan)
        newdisks.require_bare(host.lvm, plan)
        undo.add(
            "the names of the disks (until then the domain must not be started)",
            partial(takingback.put_names_back, host.lvm, plan.set, self.disks),
        )

    def as_it_is_now(self) -> GoingBack:
        """Return this for what the domain does now, which is written down.

        The image may have been read for an hour.  Since then the guest may have rebooted, as one
        does that panics over and over, and is in another run; or its owner has paused it, or lets
        it run.  Whoever finds it standing still after this, and nobody at work, lets it run only
        if the journal says that it did, and in this run.
        """
        planned = self.plan.domain
        found = standing.find(self.host, planned.name)
        if found is None or found.uuid != planned.uuid or None in (found.run, planned.run):
            return self
        runs = found.state is DomainState.RUNNING
        journal = replace(self.journal, run=DomainRun.of(found), was_running=runs)
        if journal == self.journal:
            return self
        self._write_down(journal)
        plan = replace(self.plan, domain=replace(planned, run=found.run))
        return replace(self, plan=plan, journal=journal)

    def past_return(self, warm: Crews, undo: Undo, known: Report) -> RollbackDone:
        """End the domain and bring it back, undisturbed; as ``carry_out``, of which it is a part.

        ``known`` is what LVM reported of what is prepared.
        """
        with undisturbed(), unstoppable():
            try:
                self._exchange(warm, undo, known)
                return self._go_on()
            finally:
                nothing_is_left()

    def _exchange(self, warm: Crews, undo: Undo, known: Report) -> None:
        """Keep what is current below the standing domain, then end it: no return from here."""
        self.progress.phase("exchanging the disks")
        with self.host.hypervisor.frozen(self.plan.domain):
            deadline = Deadline(self.host.settings.window_limit_seconds)
            swapping.exchange(warm, self.plan, deadline)
            newdisks.require_names(
                self.host.lvm, self.plan.record, self.disks, deadline.left_seconds
            )
            newdisks.require_bare(self.host.lvm, self.plan, is_exchanged=True)
            writingback.require_kept(self.host.lvm, self.plan, known, deadline)
            self._set_files_aside(undo)
            self._require_room()
            undo.add("what the journal says", self._turn_back)
            self.host.lvm.bring_to_disk(disk.former for disk in self.disks)
            self._reach(Phase.EXCHANGED)
            self._end_domain()
            undo.disarm()

    def _require_room(self) -> None:
        """Look once more for room to write down how far it is: an image may be read for long.

        It is no refusal any more: those say that nothing was touched.
        """
        try:
            imageroom.require_writable(self.host.settings)
        except Refused as error:
            failed = RollbackFailed(self.plan.domain.name, self.plan.record.id, str(error))
            failed.remedy = f"{failed.remedy}; {error.hint()}"
            raise failed from error

    def _set_files_aside(self, undo: Undo) -> None:
        """Keep the domain's UEFI variables and vTPM, which may go with it."""
        host, uuid, undo_id = self.host, self.plan.record.domain_uuid, self.plan.undo_id
        aside = host.catalog.aside(uuid, undo_id)
        undo.add("the files put aside", partial(host.catalog.forget, aside))
        swapping.set_side_files_aside(host, uuid, undo_id, self.plan.domain)

    def _end_domain(self) -> None:
        """End the domain; it is enough that it is off.

        What has not ended with it, such as a back end that does not let go of its disk, fails later
        where it matters.
        """
        try:
            self.host.hypervisor.stop(self.plan.domain)
        except SnapvmError as error:
            if self._state() is not DomainState.SHUTOFF:
                raise
            log.warning("%s is off, but has not ended entirely: %s", self.plan.domain.name, error)

    def _go_on(self) -> RollbackDone:
        """Past the point of no return: the disks; then the domain, and beside it the bookkeeping.

        The bookkeeping can be done twice, and the journal ends after both: a rollback that dies
        here is finished by the next command, however far either of them had come.
        """
        host, record, journal = self.host, self.plan.record, self.journal
        self._restore_disks()
        with self._no_return():
            self.progress.phase("starting the domain")
            with workers(1) as beside:
                keeping = beside.submit(self._settle)
                started = self._start()
            if isinstance(started, SnapvmError):
                given_up = swapping.give_up(host, record, journal, started, keeping.result)
                raise given_up from started
            state, guest = started
            with guestsystem.standing_above(guest.stuck):
                self._reach(Phase.STARTED)
                kept = keeping.result()
                self._end_journal()
        return RollbackDone(plan=self.plan, undo=kept, state=state, guest=guest, seconds=0.0)

    def _restore_disks(self) -> None:
        """Write the thick disks back, and all files; what fails here is done again by `repair`.

        The domain must not run on disks that are half the one and half the other.
        """
        host, plan = self.host, self.plan
        try:
            self._reach(Phase.SWAPPED)
            writingback.copy_back(host.lvm, self.disks, self.progress)
            swapping.put_side_files_back(host, plan.record, plan.undo_id, plan.domain)
            self._reach(Phase.RESTORED)
        except SnapvmError as error:
            mending = takingback.way_on(error)
            raise HalfBack(plan.domain.name, plan.record.id, str(error), mending=mending) from error

    @contextmanager
    def _no_return(self) -> Iterator[None]:
        """Turn a failure of the block into one that does not claim that all was put back.

        The journal stays and `repair` goes on from it; whether that is all there is to do depends
        on the domain.
        """
        name, record = self.plan.domain.name, self.plan.record
        try:
            yield
        except SnapvmError as error:
            if error.exit_status is ExitStatus.ATTENTION:
                raise
            if record.state.is_on and not self._is_known_on():
                raise swapping.not_started(
                    record, error, f"then: {swapping.repairing(name)}"
                ) from error
            left = (f"the last steps of the rollback of {name} to {record.id}",)
            raise LeftBehind(leftovers=left, why=str(error)) from error

    def _is_known_on(self) -> bool:
        state = self._state()
        return state is not None and state.has_memory

    def _state(self) -> DomainState | None:
        """Return what the domain does; None when that cannot be asked."""
        try:
            domain = standing.find(self.host, self.plan.domain.name)
        except SnapvmError:
            return None
        return DomainState.SHUTOFF if domain is None else domain.state

    def _settle(self) -> Record:
        return swapping.settle(self.host, self.plan.set, self.former, self.disks)

    def _start(self) -> tuple[DomainState, Awakened] | SnapvmError:
        """Start the domain and its guest's system, or return why not."""
        plan, journal = self.plan, self.journal
        try:
            state = swapping.start_again(
                self.host,
                plan.domain,
                plan.record,
                self.progress,
                paused=journal.paused,
            )
            return state, guestsystem.awaken(self.host, plan.record, set_time=journal.set_time)
        except SnapvmError as error:
            return error

    def _reach(self, phase: Phase) -> None:
        """Write down how far the rollback is."""
        self._write_down(self.journal.reached(phase, self.host.lvm))

    def _turn_back(self) -> None:
        """Have the journal say that the domain runs on, whatever becomes of it before a repair.

        Nothing depends on it where all else is put back.
        """
        with suppress(SnapvmError):
            self._write_down(self.journal)

    def _write_down(self, journal: RollbackJournal) -> None:
        rollbackjournal.write(self.host, self.plan.record.domain_uuid, journal)

    def _end_journal(self) -> None:
        self.host.catalog.end_journal(self.plan.record.domain_uuid, Work.ROLLBACK)
