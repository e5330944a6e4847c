"""Finishing a rollback that was killed, or taking it back: what its journal and LVM say decides.

Each step may itself be killed and run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from snapvm import (
    guestsystem,
    howfar,
    newdisks,
    recordeddomain,
    rollbackjournal,
    standing,
    swapping,
    takingback,
    writingback,
)
from snapvm.attention import GivenBack, HalfBack, LeftOff, NotStarted, StartedTooSoon, StillFrozen
from snapvm.clock import Deadline
from snapvm.errors import SnapvmError
from snapvm.host import Host
from snapvm.howfar import Found
from snapvm.model import Domain, DomainState, DomainUuid, Record, Role, Silent
from snapvm.recordfolder import Work
from snapvm.rollbackjournal import Phase, RollbackJournal

_START_SECONDS = 30.0
_SLOWEST_BYTES_PER_SECOND = 20e6
"""How long a start may take: what libvirt or xl need, and a slow disk for the image."""
_END_SECONDS = 15.0
"""How long libvirt gives a QEMU to end before it kills it, and some more."""
_LOOK_SECONDS = 0.1

log = logging.getLogger(__name__)


def finish(host: Host, journal: RollbackJournal, uuid: DomainUuid, name: str) -> str:
    """Go on with a rollback that is past its point of no return; take any other back."""
    set_, disks = journal.set, journal.disks
    domain = _come_to_rest(host, journal, uuid, standing.find(host, name))
    report = host.lvm.report()
    takingback.require_groups(report, disks)
    found = howfar.look(host.lvm, report, journal, name, was_stopped=_is_off(domain))
    if found.phase is Phase.PREPARE:
        return _take_back(host, journal, uuid, name)
    undo = journal.undo()
    settle = partial(swapping.settle, host, set_, undo, disks)
    stuck: LeftOff | StillFrozen | None = None
    if found.phase is Phase.STARTED:
        stuck = _said_before(journal, name, domain)
    else:
        stuck = _go_on(host, journal, _record(host, journal, uuid, domain), domain, found, settle)
    with guestsystem.standing_above(stuck):
        settle()
        host.catalog.end_journal(uuid, Work.ROLLBACK)
    has_booted = not _is_off(domain) and journal.run.is_before_boot
    if found.is_over:
        return f"the rollback of {name} to {journal.record} had ended: its journal was an old one"
    is_afresh = has_booted and found.phase is not Phase.STARTED
    how = "; the host was rebooted meanwhile, and the domain started afresh" if is_afresh else ""
    return f"finished the rollback of {name} to {journal.record}{how}"


def _come_to_rest(
    host: Host, journal: RollbackJournal, uuid: DomainUuid, domain: Domain | None
) -> Domain | None:
    """Return the domain when nothing of the killed rollback goes on with it any more.

    One that was to be restored may be in its start; one that was frozen is let run.
    """
    if domain is not None and journal.phase is Phase.RESTORED:
        record = _record(host, journal, uuid, domain)
        domain = _once_started(host, journal, record, domain)
        _require_whole(journal, record, domain)
    elif domain is not None and journal.phase in howfar.UNDECIDED:
        domain = _former_let_run(host, journal, uuid, domain)
    return domain


def _is_off(domain: Domain | None) -> bool:
    return domain is None or domain.state is DomainState.SHUTOFF


def _go_on(
    host: Host,
    journal: RollbackJournal,
    record: Record,
    domain: Domain | None,
    found: Found,
    settle: Callable[[], object],
) -> StillFrozen | None:
    """Bring back what is not back yet: the disks, the domain, the system in its guest.

    Returns why that system does not go on, if so.
    """
    target = domain or recordeddomain.vanished(record, journal.definition)
    was_stopped = _is_off(domain)
    is_renewed = found.phase is Phase.SWAPPED and (journal.is_spoiled or found.is_spoiled)
    # After a boot nobody knows: thick disks, written back, would not fit thin ones that were used.
    may_be_spoiled = was_stopped and journal.run.is_before_boot and journal.has_thick
    if found.is_spoiled or may_be_spoiled:
        journal = replace(journal, is_spoiled=True)
    if found.is_used and not is_renewed:
        _leave_used_off(host, journal, record, settle, is_booted=False)
    if found.phase is Phase.SWAPPED:
        _restore_disks(host, journal, record, target, is_stopped=was_stopped)
    if was_stopped and not is_renewed and journal.run.is_before_boot:
        _leave_used_off(host, journal, record, settle, is_booted=True)
    if was_stopped:
        _start(host, journal, record, target, settle)
    return _awaken(host, record, set_time=journal.set_time)


def _record(
    host: Host, journal: RollbackJournal, uuid: DomainUuid, domain: Domain | None
) -> Record:
    """Return what the domain is to go back to, under the name that it has now."""
    record = host.catalog.get(uuid, journal.record)
    return record if domain is None else replace(record, domain=domain.name)


def _once_started(
    host: Host, journal: RollbackJournal, record: Record, domain: Domain
) -> Domain | None:
    """Return the domain, or None, when its start has ended: libvirt or xl go on without snapvm.

    It stands still while its memory is read, and is off when that fails.  One that somebody paused
    looks the same, so this has an end.
    """
    if record.memory is None or not _is_to_run(journal, record):
        return domain
    limit = Deadline(_START_SECONDS + record.memory.size_bytes / _SLOWEST_BYTES_PER_SECOND)
    found: Domain | None = domain
    while found is not None and found.state is DomainState.PAUSED and limit.left_seconds:
        time.sleep(_LOOK_SECONDS)
        found = standing.find(host, domain.name)
    return found


def _require_whole(journal: RollbackJournal, record: Record, domain: Domain | None) -> None:
    """Raise ``NotStarted`` for what may be half a domain, as an xl leaves that was killed."""
    stands = domain is not None and domain.state is DomainState.PAUSED
    if stands and record.memory is not None and _is_to_run(journal, record):
        raise NotStarted(
            domain=record.domain,
            id=record.id,
            why="it is paused, and its start does not finish",
            remedy="resume it if somebody paused it, else end it (`virsh destroy`, `xl destroy`); "
            f"then: {swapping.repairing(record.domain)}",
        )


def _is_to_run(journal: RollbackJournal, record: Record) -> bool:
    """Tell whether the rollback is to leave the domain running."""
    return not journal.paused and record.state is DomainState.RUNNING


def _former_let_run(
    host: Host, journal: RollbackJournal, uuid: DomainUuid, domain: Domain
) -> Domain | None:
    """Let the domain that was frozen run before lvm is asked for anything, which may take long.

    It has its former disks open, whatever their names are.  A failure here is only logged: libvirt
    or xl may still be at work on ending it for the killed rollback, and then its end decides what
    becomes of the disks.  Once it runs, that the rollback is taken back is written down, for a
    repair that finds it off later because lvm failed now.  Returns the domain as it is then.
    """
    if _is_off(domain) or not journal.run.is_of(domain):
        return domain
    try:
        if journal.was_running:
            standing.let_run(host, domain)
        found = standing.find(host, domain.name)
        if not _is_off(found) and journal.phase is not Phase.PREPARE:
            rollbackjournal.write(host, uuid, replace(journal, phase=Phase.PREPARE))
    except SnapvmError as error:
        log.info("%s does not run yet, or nobody can write that down: %s", domain.name, error)
        return _once_ended(host, domain)
    return found


def _once_ended(host: Host, domain: Domain) -> Domain | None:
    """Give a domain that stands still the time to end; return it as it is then."""
    limit = Deadline(_END_SECONDS)
    found = standing.find(host, domain.name)
    while found is not None and found.state in standing.STATES and limit.left_seconds:
        time.sleep(_LOOK_SECONDS)
        found = standing.find(host, domain.name)
    return found


def _leave_used_off(
    host: Host,
    journal: RollbackJournal,
    record: Record,
    settle: Callable[[], object],
    *,
    is_booted: bool,
) -> None:
    """Do all else, then raise ``LeftOff`` for a domain that was used since, or may have been.

    Its owner started it, or the killed rollback did, and he shut it off: what it has written is
    nowhere else, and memory would not fit that.  After a boot nobody knows whether it was so.
    """
    if is_booted and record.memory is None:
        return
    # First: once all else is done nothing tells clones from any other disks.
    decided = replace(journal, phase=Phase.STARTED, left_off=is_booted)
    rollbackjournal.write(host, record.domain_uuid, decided)
    settle()
    host.catalog.end_journal(record.domain_uuid, Work.ROLLBACK)
    raise LeftOff(record.domain, record.id, is_booted)


def _said_before(journal: RollbackJournal, name: str, domain: Domain | None) -> LeftOff | None:
    """Return what an earlier repair had decided and died before telling, if that still holds."""
    if journal.left_off is None or not _is_off(domain):
        return None
    return LeftOff(name, journal.record, journal.left_off)


def _take_back(host: Host, journal: RollbackJournal, uuid: DomainUuid, name: str) -> str:
    set_, disks = journal.set, journal.disks
    domain = standing.find(host, name)
    if journal.was_running and domain is not None and not journal.run.is_over(domain):
        standing.let_run(host, domain)  # first: it holds its disks open, and no name of theirs
    takingback.put_names_back(host.lvm, set_, disks)
    host.lvm.remove_set_where_there((disk.vg for disk in disks), set_, Role.ROLL)
    # An lvm of the killed rollback that waited for a group has had it by now, and renamed late.
    takingback.put_names_back(host.lvm, set_, disks)
    host.catalog.forget(host.catalog.aside(uuid, journal.undo().id))
    host.catalog.end_journal(uuid, Work.ROLLBACK)
    is_ended = journal.was_running and _is_off(standing.find(host, name))
    who = "the host was rebooted" if journal.run.is_before_boot else "something ended the domain"
    off = f"; {who} meanwhile, and {name} is off" if is_ended else ""
    return f"took back the unfinished rollback of {name} to {journal.record}{off}"


def _given_back(
    host: Host, journal: RollbackJournal, record: Record, domain: Domain, why: str
) -> SnapvmError:
    """Give the domain its former disks back, and say so: what it was to go back to is lost.

    What remains then is the same as of any other rollback that is taken back.
    """
    uuid, name = record.domain_uuid, record.domain
    undo_id = journal.undo().id
    try:
        takingback.give_back(host.lvm, journal.set, journal.disks, Silent())
        swapping.take_side_files_back(host, uuid, undo_id, domain)
    except SnapvmError as error:
        return HalfBack(name, record.id, f"{why}; and what it was cannot be put back: {error}")
    taken_back = replace(journal, phase=Phase.PREPARE, was_running=False)
    rollbackjournal.write(host, uuid, taken_back)
    _take_back(host, taken_back, uuid, name)
    return GivenBack(domain=name, id=record.id, why=why)


def _start(
    host: Host,
    journal: RollbackJournal,
    record: Record,
    domain: Domain,
    settle: Callable[[], object],
) -> None:
    """Start the domain; one that does not start must not keep every command on it from working.

    It fails, too, when the start that the killed rollback had asked for was still under way, and
    could not be seen yet: a domain that runs after all is one that was started.
    """
    try:
        swapping.activate(host.lvm, journal.disks)
        newdisks.require_names(host.lvm, record, journal.disks)
        swapping.start_again(host, domain, record, Silent(), paused=journal.paused)
    except SnapvmError as error:
        started = standing.find(host, domain.name)
        if started is not None:
            started = _once_started(host, journal, record, started)
        if started is not None and started.state is DomainState.RUNNING:
            return
        raise swapping.give_up(host, record, journal, error, settle) from error


def _awaken(host: Host, record: Record, *, set_time: bool) -> StillFrozen | None:
    """Let the guest's system go on, or return why it does not; a lesser failure is only logged."""
    awakened = guestsystem.awaken(host, record, set_time=set_time)
    for note in awakened.notes:
        log.warning("%s", note)
    return awakened.stuck


def _restore_disks(
    host: Host, journal: RollbackJournal, record: Record, domain: Domain, *, is_stopped: bool
) -> None:
    """Write thick disks back once more from the start; not below a domain somebody started.

    Such a domain has written to the clones of thin disks too, which then fit no instant.
    """
    uuid, disks = record.domain_uuid, journal.disks
    if journal.has_thick and not is_stopped:
        rollbackjournal.write(host, uuid, replace(journal, phase=Phase.SWAPPED, is_spoiled=True))
        raise StartedTooSoon(domain.name)
    if not is_stopped:
        log.warning("%s was started afresh meanwhile, not from memory", domain.name)
    try:
        if is_stopped:
            # What is written from here on, and the names until all clones are anew, must not be
            # taken for its owner's doing by a repair after this one.
            rollbackjournal.write(host, uuid, journal.reached(Phase.SWAPPED, host.lvm))
        if journal.is_spoiled:
            takingback.renew_clones(host.lvm, journal.set, disks, journal.undo())
        writingback.copy_back(host.lvm, disks, Silent())
        if is_stopped:
            swapping.put_side_files_back(host, record, journal.undo().id, domain)
        # A domain that is on must not get its memory later, though the next repair find it off.
        phase = Phase.RESTORED if is_stopped else Phase.STARTED
        rollbackjournal.write(host, uuid, journal.reached(phase, host.lvm))
    except SnapvmError as error:
        if is_stopped and takingback.is_way_lost(host.lvm.report(), disks):
            raise _given_back(host, journal, record, domain, str(error)) from error
        if not is_stopped:  # it is on, and not on its way
            raise
        mending = takingback.mending(host.lvm.report(), disks, error)
        raise HalfBack(domain.name, record.id, str(error), mending=mending) from error
