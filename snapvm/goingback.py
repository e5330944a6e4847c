"""The order of a rollback that has been decided on; ``snapvm.swapping`` has its steps.

A clone of every thin snapshot is made; the domain stands still; names are swapped, so that the
clones are the disks, and thick disks are snapshotted; only then, past everything that can fail and
be put back, the domain is ended, thick disks are written back, and it is restored.  Renaming below
a domain that stands still costs it nothing: it holds the device and not the name, and runs on when
a rename fails.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from snapvm import guestsystem, readback, rollbackjournal, rollbackplan, swapping
from snapvm.errors import SnapvmError
from snapvm.failures import CaptureFailed, NotStarted
from snapvm.guard import Guard
from snapvm.guestsystem import Awakened
from snapvm.host import Host
from snapvm.interrupt import undisturbed
from snapvm.lvm.crew import Crews
from snapvm.model import DomainState, Progress, Record, Role
from snapvm.planning import RollbackPlan
from snapvm.rollbackjournal import Phase
from snapvm.undo import Undo


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
    journal: dict[str, Any]
    progress: Progress

    @classmethod
    def of(
        cls, host: Host, plan: RollbackPlan, progress: Progress, *, paused: bool, set_time: bool
    ) -> GoingBack:
        """Decide how it is done; nothing is touched."""
        former = rollbackplan.undo_record(plan)
        journal = rollbackjournal.begun(plan, former, paused=paused, set_time=set_time)
        return cls(host, plan, former, journal, progress)

    def carry_out(self, guard: Guard, *, verify: bool) -> RollbackDone:
        """Go back; until the last rename is done a failure leaves the domain running as before."""
        plan = self.plan
        memory = plan.record.memory if verify else None
        image = None if memory is None else self.host.catalog.path(plan.record, memory.file)
        with (
            readback.being_read(image, memory, self.progress) as require_right,
            Undo() as undo,
            self.host.lvm.warmed(plan.groups) as warm,
        ):
            guard.wait_until_ready()
            self._prepare(warm, undo)
            require_right()
            with undisturbed():
                self._exchange(warm, undo)
                return self._go_on()

    def _prepare(self, warm: Crews, undo: Undo) -> None:
        """Write down what is intended, and make all that can be made beside a running domain."""
        host, plan = self.host, self.plan
        end_journal = partial(host.catalog.end_journal, plan.record.domain_uuid, swapping.JOURNAL)
        undo.add("the journal", end_journal, is_journal=True)
        host.catalog.write_journal(plan.record.domain_uuid, swapping.JOURNAL, self.journal)
        self.progress.phase("preparing the disks")
        for what, removal in host.lvm.removals(plan.groups, plan.set, Role.ROLL):
            undo.add(what, removal)
        swapping.prepare(host.lvm, warm, plan)
        undo.add(
            "the names of the disks",
            partial(swapping.put_names_back, host.lvm, plan.set, self.journal["disks"]),
        )

    def _exchange(self, warm: Crews, undo: Undo) -> None:
        """Keep what is current below the standing domain, then end it: no return from here."""
        self.progress.phase("exchanging the disks")
        with self.host.hypervisor.frozen(self.plan.domain):
            swapping.exchange(warm, self.plan)
            self.host.hypervisor.stop(self.plan.domain)
            undo.disarm()

    def _go_on(self) -> RollbackDone:
        """Past the point of no return: the disks; then the domain, and beside it the bookkeeping.

        The bookkeeping may be done again, and the journal ends after both: a rollback that dies
        here is finished by the next command, however far either of them was.
        """
        host, plan, journal = self.host, self.plan, self.journal
        self._reach(Phase.SWAPPED)
        self._copy_back()
        self._reach(Phase.RESTORED)
        self.progress.phase("starting the domain")
        with ThreadPoolExecutor(max_workers=1) as beside:
            keeping = beside.submit(swapping.settle, host, plan.set, self.former, journal["disks"])
            started = self._start()
        self._reach(Phase.STARTED)
        kept = keeping.result()
        host.catalog.end_journal(plan.record.domain_uuid, swapping.JOURNAL)
        if isinstance(started, CaptureFailed):
            raise self._not_started(started, f"snapvm rollback {plan.record.ref}") from started
        state, guest = started
        if guest.stuck is not None:
            raise guest.stuck
        return RollbackDone(plan=plan, undo=kept, state=state, guest=guest, seconds=0.0)

    def _start(self) -> tuple[DomainState, Awakened] | CaptureFailed:
        """Start the domain and its guest's system, or return why not."""
        plan, journal = self.plan, self.journal
        try:
            state = swapping.start_again(
                self.host, plan.domain, plan.record, paused=bool(journal["paused"])
            )
            set_time = bool(journal["set_time"])
            return state, guestsystem.awaken(self.host, plan.record, set_time=set_time)
        except CaptureFailed as error:
            return error

    def _reach(self, phase: Phase) -> None:
        """Write down how far the rollback is."""
        uuid = self.plan.record.domain_uuid
        reached = {**self.journal, "phase": phase.value}
        self.host.catalog.write_journal(uuid, swapping.JOURNAL, reached)

    def _copy_back(self) -> None:
        """Write the thick disks back; what fails here is done again by `repair`.

        The domain must not run on disks that are half the one and half the other.
        """
        host, plan = self.host, self.plan
        try:
            swapping.copy_back(host.lvm, self.journal["disks"], self.progress)
            swapping.put_side_files_back(host, plan.record, plan.undo_id, plan.domain)
        except SnapvmError as error:
            raise self._not_started(error, f"snapvm repair {plan.domain.name}") from error

    def _not_started(self, error: SnapvmError, next_: str) -> NotStarted:
        return NotStarted(
            domain=self.plan.domain.name,
            id=self.plan.record.id,
            why=str(error),
            remedy=f"mend the cause, then: {next_}",
        )
