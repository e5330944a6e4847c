"""A domain that ends with its snapshot (`take --stop`): intended, carried out, and finished later.

The journal of it is written before the record is visible and ends when the domain has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from snapvm import guestsystem, standing
from snapvm.attention import LeftBehind, NotStopped
from snapvm.domainrun import DomainRun
from snapvm.errors import SnapvmError
from snapvm.failures import DomainFailed
from snapvm.host import Host
from snapvm.jsonvalues import optional, required
from snapvm.model import Domain, DomainState, DomainUuid, SnapshotId
from snapvm.planning import TakePlan
from snapvm.recordfolder import Work
from snapvm.undo import Undo


@dataclass(frozen=True, slots=True, kw_only=True)
class StopJournal:
    """What is written down of a domain that is to end with its snapshot."""

    record: SnapshotId
    set: str
    """Of the record, whose id may be another's later."""
    run: DomainRun
    """The one that is to end."""
    quiesce: bool
    """Its guest's agent froze the file systems."""

    @classmethod
    def of_plan(cls, plan: TakePlan) -> StopJournal:
        """Return what is to be written down of a `take` that has been decided on."""
        run = DomainRun.of(plan.domain)
        return cls(record=plan.id, set=plan.set, run=run, quiesce=plan.quiesce)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> StopJournal:
        """Read it from plain JSON values; raise ``Wrong``."""
        return cls(
            record=SnapshotId(required(said, "record", str)),
            set=required(said, "set", str),
            run=DomainRun.from_dict(said),
            quiesce=optional(said, "quiesce", default=False),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "record": self.record,
            "set": self.set,
            **self.run.as_dict(),
            "quiesce": self.quiesce,
        }


def intend(host: Host, plan: TakePlan, undo: Undo) -> None:
    """Write down, before the record is visible, that the domain ends once it is.

    This run of it, and none that may come: the journal can stay unread for long.
    """
    uuid = plan.domain.uuid
    undo.add("the journal", partial(host.catalog.end_journal, uuid, Work.STOP))
    host.catalog.write_journal(uuid, Work.STOP, StopJournal.of_plan(plan).as_dict())


def carry_out(host: Host, plan: TakePlan) -> None:
    """End a domain whose record is whole; one that does not end runs on, and the record stays.

    The journal stays with one that cannot be let run either, so that the next command ends it.
    """
    domain = plan.domain
    try:
        _require_standing(host, domain)
        host.hypervisor.stop(domain)
    except SnapvmError as error:
        is_standing = not _goes_on(host, plan)
        if not is_standing:
            with suppress(SnapvmError):  # the next command ends it
                host.catalog.end_journal(domain.uuid, Work.STOP)
        raise NotStopped(domain.name, plan.id, str(error), is_standing) from error
    try:
        host.catalog.end_journal(domain.uuid, Work.STOP)
    except SnapvmError as error:
        left = f"the journal of {domain.name}@{plan.id}, which is complete; the domain is off"
        raise LeftBehind(leftovers=(left,), why=str(error)) from error


def _goes_on(host: Host, plan: TakePlan) -> bool:
    """Let a domain go on that was not ended; return False when it still stands for its capture."""
    if plan.domain.state is not DomainState.RUNNING:
        return True
    try:
        standing.run_again(host, plan.domain.name)
    except SnapvmError:
        return False
    if plan.quiesce:
        guestsystem.release(host, plan.domain)
    return True


def _require_standing(host: Host, domain: Domain) -> None:
    """Raise ``DomainFailed`` for one that has gone on from what was captured, whoever let it.

    Writing its memory takes minutes, and it is seen to be paused meanwhile.
    """
    now = standing.find(host, domain.name)
    if now is not None and now.state is DomainState.RUNNING:
        raise DomainFailed(domain=domain.name, deed="ended", why="somebody resumed it")


def finish(host: Host, journal: StopJournal, uuid: DomainUuid, name: str) -> str:
    """End a domain whose snapshot became whole; it may have been started again since."""
    domain = standing.find(host, name)
    is_due = host.catalog.has_record(uuid, journal.record, journal.set)
    said = f"{name} no longer has to be stopped"
    if domain is None or domain.state is DomainState.SHUTOFF:
        if is_due:
            said = f"{name} was to be stopped, and is off already"
    elif not is_due or domain.state not in standing.STATES:
        # One that runs has gone on from what was captured, whoever let it.
        if domain.state is DomainState.RUNNING and journal.quiesce:
            guestsystem.release(host, domain)
    elif journal.run.is_of(domain):
        host.catalog.settle_names(uuid)  # else a power cut takes the snapshot back
        host.hypervisor.stop(domain)
        said = f"finished stopping {name}"
    else:
        said = f"{name} is paused, and may not be the run that was to be stopped"
    host.catalog.end_journal(uuid, Work.STOP)
    return said
