"""Finishing or taking back what an earlier snapvm left behind when it was killed.

A take, a rollback (or undo) and a delete (or prune) run this first, under the domain's lock; a
journal that is there then belongs to nobody alive.  Each step may itself be killed and run again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapvm import (
    durable,
    guestsystem,
    orphans,
    recordfile,
    rollbackrepair,
    standing,
    stopping,
    takingback,
)
from snapvm.attention import HalfBack, LeftBehind, NotStarted, without_journal
from snapvm.errors import ExitStatus, SnapvmError, WorkElsewhere, typed
from snapvm.failures import DiskMissing, OldJournal
from snapvm.host import Host
from snapvm.interrupt import shielded, unstoppable
from snapvm.jsonvalues import Wrong
from snapvm.lvm import argv, away
from snapvm.model import Domain, DomainState, DomainUuid, Record, Role
from snapvm.recordfolder import Leftover, Work
from snapvm.refusals import DomainRefused, GroupAway, RecordNewer, RecordUnusable, VolumeRefused
from snapvm.rollbackjournal import Phase, RollbackJournal
from snapvm.stopping import StopJournal
from snapvm.takejournal import TakeJournal

log = logging.getLogger(__name__)


def finish_pending(
    host: Host,
    uuid: DomainUuid,
    name: str,
    *,
    forget_missing: bool = False,
    take_over: bool = False,
) -> tuple[str, ...]:
    """Deal with every journal of a domain; return what was done, in words.

    ``name`` is what the catalog knows it by.  While a volume group is away the journals of what has
    volumes in it stay; with ``forget_missing`` those volumes are left behind.  Another host's
    journals are dealt with only with ``take_over``; without it they raise ``WorkElsewhere``.
    Raises ``LeftBehind`` when something could not be finished, ``JournalUnusable`` when a journal
    does not say what there is to do, and any failure that says that the domain needs attention.
    A signal waits until all of them are dealt with: one may leave it to the next to let a domain
    run that stands still, or to finish the rollback in which it is off.
    """
    done = []
    with shielded(), unstoppable():
        for leftover in host.catalog.leftovers(uuid):
            is_ours = take_over and isinstance(leftover.unusable, WorkElsewhere)
            if leftover.unusable is not None and not is_ours:
                raise leftover.unusable
            with _leaving_behind(leftover):
                done.append(_finish(host, leftover, uuid, name, forget_missing=forget_missing))
                if done[-1]:
                    log.warning("%s", done[-1])
    return tuple(filter(None, done))


@contextmanager
def _leaving_behind(leftover: Leftover) -> Iterator[None]:
    """Turn what keeps the block from finishing something into ``LeftBehind``."""
    left = (str(leftover.path),)
    try:
        yield
    except Wrong as error:
        raise _damaged(left, str(error)) from error
    except (KeyError, ValueError) as error:  # its parts do not fit, or lvm cannot be told of them
        raise _damaged(left, repr(error)) from error
    except (GroupAway, DiskMissing, VolumeRefused) as error:
        needed = f"; before that: {error.hint()}" if error.hint() else ""
        again = f"`snapvm repair` tries again{needed}"
        raise LeftBehind(leftovers=left, why=str(error), remedy=again) from error
    except OldJournal as error:
        raise LeftBehind(leftovers=left, why=str(error), remedy=error.hint()) from error
    except RecordNewer as error:
        raise LeftBehind(leftovers=left, why=error.why, remedy=error.hint()) from error
    except SnapvmError as error:
        if error.exit_status is ExitStatus.ATTENTION:
            raise
        raise LeftBehind(leftovers=left, why=str(error)) from error


def _damaged(left: tuple[str, ...], why: str) -> LeftBehind:
    """Return what to raise for a journal that no later repair could make more of."""
    why = f"its journal is damaged ({why})"
    return LeftBehind(leftovers=left, why=why, remedy=without_journal(left[0]))


@contextmanager
def _not_started_by_mistake(
    host: Host, journal: RollbackJournal, uuid: DomainUuid, name: str, path: Path
) -> Iterator[None]:
    """Raise a failure that leaves a domain off amid its rollback as one that needs attention.

    Else its owner may think that only volumes are left over, as after any other work, and start it:
    upon disks of two times, or without the memory that is to come back.
    """
    try:
        yield
    except OldJournal:  # that rollback had an end, and the domain is off for another reason
        raise
    except SnapvmError as error:
        if isinstance(error, DiskMissing):
            error.journal = str(path)
        if error.exit_status is ExitStatus.ATTENTION or not _is_off_amid(host, journal, uuid, name):
            raise
        id_, mending = journal.record, takingback.way_on(error)
        if journal.phase is Phase.RESTORED:
            next_ = f"{mending}, then: {typed('repair', name)}"
            raise NotStarted(domain=name, id=id_, why=str(error), remedy=next_) from error
        is_sure = journal.phase is Phase.SWAPPED
        raise HalfBack(name, id_, str(error), is_sure, mending) from error


def _is_off_amid(host: Host, journal: RollbackJournal, uuid: DomainUuid, name: str) -> bool:
    """Tell whether a domain is known to be off, and not as its rollback is to leave it."""
    if journal.phase is Phase.STARTED:
        return False
    try:
        domain = standing.find(host, name)
    except SnapvmError:
        return False  # a hypervisor that is away for a moment has not ended it
    if domain is not None and domain.state is not DomainState.SHUTOFF:
        return False
    with suppress(SnapvmError):
        is_to_run = host.catalog.get(uuid, journal.record).state.is_on
        return is_to_run or journal.phase is not Phase.RESTORED
    return True


def finish_all(host: Host, uuids: Iterable[DomainUuid], name: str) -> None:
    """Call ``finish_pending`` for every uuid that a machine is known under."""
    for uuid in uuids:
        finish_pending(host, uuid, name)


def require_none_pending(host: Host, uuids: Iterable[DomainUuid], name: str) -> None:
    """Raise ``DomainRefused`` when ``finish_all`` would have something to do."""
    if any(tuple(host.catalog.leftovers(uuid)) for uuid in uuids):
        raise DomainRefused(
            domain=name,
            why="what a killed snapvm left behind has to be finished or taken back first",
            remedy=typed("repair", name),
        )


def correct_tags(host: Host, uuid: DomainUuid) -> tuple[str, ...]:
    """Mark the volumes of visible records as complete where a killed take did not get that far.

    Mark lost ones as lost, too.
    """
    records = tuple(host.catalog.records(uuid))
    if not records:  # a machine that is created anew each night leaves hundreds of uuids with none
        return ()
    report = host.lvm.report()
    host.lvm.mark_lost(report)
    new = argv.role_tag(Role.NEW)
    done = []
    for record in records:
        found = (report.lv_of(disk.snapshot) for disk in record.disks)
        late = [volume.ref for volume in found if volume is not None and new in volume.tags]
        if late:
            host.lvm.retag(late, add=[argv.role_tag(Role.OK)], remove=[new])
            done.append(f"corrected the tags of {record.ref}")
    return tuple(done)


def set_back(host: Host, uuid: DomainUuid, name: str) -> tuple[str, ...]:
    """Set back what a killed `doctor`, which has no journal, had set as for a capture of a domain.

    It comes after everything that has a journal.  What was set in the host itself is set back even
    for a domain that nobody knows any more.
    """
    if uuid not in host.hypervisor.touched():
        return ()
    name = standing.name_now(host, uuid, name)
    domain = standing.find(host, name)
    if domain is None or domain.uuid != uuid:
        domain = Domain(
            name=name,
            uuid=uuid,
            hypervisor=host.hypervisor.kind,
            state=DomainState.SHUTOFF,
            memory_bytes=0,
            vcpus=0,
            definition="",
        )
    host.hypervisor.abandon(domain)
    return (f"reset what a killed snapvm had changed for a capture of {name}",)


def remove_orphans(host: Host, failures: list[SnapvmError]) -> tuple[str, ...]:
    """Remove volumes that an lvm of a killed take or rollback made when all was taken back already.

    Only what carries our tags, has not become part of a record, and is named by no journal.  What
    LVM says of those that it does not remove goes into ``failures``.
    """
    left = orphans.of(host, host.lvm.report())
    late = [volume for volume in left if volume.tags & orphans.UNFINISHED]
    gone = orphans.remove(host, late, failures)
    return tuple(f"removed the orphan {volume.ref}" for volume in gone)


def _finish(
    host: Host, leftover: Leftover, uuid: DomainUuid, known: str, *, forget_missing: bool
) -> str:
    """Deal with one journal and return what was done; nothing where nothing had been done yet.

    So it is with the folder of a record that a rollback or `catalog rebuild` was about to write.
    """
    if leftover.work is Work.TAKE and not leftover.intent:
        host.catalog.forget(leftover.path)
        return ""
    if leftover.work is Work.DELETE:
        return _finish_delete(host, leftover, uuid, known, forget_missing=forget_missing)
    name = standing.name_now(host, uuid, known)
    if leftover.work is Work.ROLLBACK:
        journal = RollbackJournal.from_dict(leftover.intent)
        with _not_started_by_mistake(host, journal, uuid, name, leftover.path):
            return rollbackrepair.finish(host, journal, uuid, name)
    if leftover.work is Work.STOP:
        return stopping.finish(host, StopJournal.from_dict(leftover.intent), uuid, name)
    _take_back(host, leftover, name, f"{known}@{leftover.id}", forget_missing=forget_missing)
    return f"took back the unfinished snapshot {known}@{leftover.id}"


def _take_back(
    host: Host, leftover: Leftover, name: str, ref: str, *, forget_missing: bool
) -> None:
    """Undo a take: the domain runs first, then what it made goes.

    Raises ``GroupAway`` while some of it may be in a group that LVM does not show; the rest has
    gone by then.
    """
    journal = TakeJournal.from_dict(leftover.intent)
    domain = standing.find(host, name)
    if domain is not None:
        ran = journal.was_running and not journal.run.is_over(domain)
        if ran:
            standing.let_run(host, domain)
        host.hypervisor.abandon(domain)
        if ran:
            # What was begun ahead of its pause may have stopped it only now.
            standing.run_again(host, name)
        if journal.quiesce:
            guestsystem.release(host, domain)
    disks = journal.disks
    report = host.lvm.explained(host.lvm.report(), disks)
    host.lvm.wake(disks, report)
    # A group may have another name by now, and a copy of it has its own; its disks tell.
    renamed = [volume.vg for volume in map(report.lv_of, disks) if volume is not None]
    named = [report.group_now(disk) for disk in disks] or journal.groups
    groups = [*named, *renamed]
    host.lvm.remove_set_where_there(groups, journal.set, Role.NEW)
    absence = next(filter(None, (away.of_volume(disk, report) for disk in disks)), None)
    if absence is not None and not forget_missing:
        raise absence.refusal([ref], forget=_forgetting(name))
    host.catalog.forget(leftover.path)


def _finish_delete(
    host: Host, leftover: Leftover, uuid: DomainUuid, name: str, *, forget_missing: bool
) -> str:
    if leftover.intent:
        record = _hidden(leftover)
        snapshots = [disk.snapshot for disk in record.disks]
        report = host.lvm.explained(host.lvm.report(), snapshots)
        absence = away.of_record(record, report)
        if absence is not None and not forget_missing:
            raise absence.refusal([f"{name}@{leftover.id}"], forget=_forgetting(name))
        host.catalog.settle_names(uuid)  # else a power cut shows it again, without its volumes
        host.lvm.remove(away.within_reach(record, report), report)
        host.lvm.wake((disk.volume for disk in record.disks), report)
    host.catalog.forget(leftover.path)
    with durable.failing_as_storage(leftover.path):
        is_read = durable.is_there(leftover.path)  # by somebody who has its image open yet
    if is_read:
        return ""
    return f"finished deleting {name}@{leftover.id}"


def _hidden(leftover: Leftover) -> Record:
    """Return the record that a killed delete had hidden; raise ``RecordNewer`` or ``Wrong``."""
    try:
        return recordfile.from_dict(leftover.intent, str(leftover.path))
    except RecordNewer:
        raise
    except RecordUnusable as error:
        raise Wrong(error.why) from error


def _forgetting(name: str) -> str:
    return typed("repair --forget-missing", name)
