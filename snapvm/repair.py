"""Finishing or taking back what an earlier snapvm left behind when it was killed.

Every command on a domain runs this first, under the domain's lock; a journal that is there then
belongs to nobody alive.  Each step may itself be killed and run again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from snapvm import (
    bootid,
    guestsystem,
    orphans,
    recordfile,
    rollbackjournal,
    rollbackplan,
    swapping,
    taking,
    takingback,
)
from snapvm.catalog import Leftover
from snapvm.clock import Deadline
from snapvm.errors import ExitStatus, Interrupted, SnapvmError, UnknownDomain
from snapvm.failures import HalfBack, LeftBehind, LeftOff, StartedTooSoon, StillFrozen
from snapvm.host import Host
from snapvm.interrupt import undisturbed
from snapvm.lvm import argv
from snapvm.model import Domain, DomainState, DomainUuid, Record, Role, Silent, SnapshotId
from snapvm.rollbackjournal import Phase

_SPOILED = "spoiled"
"""In a journal: the domain has run on clones while thick disks were not written back."""
_START_SECONDS = 30.0
_SLOWEST_BYTES_PER_SECOND = 20e6
"""How long a start may take: what libvirt or xl need, and a slow disk for the image."""
_LOOK_SECONDS = 0.1
_STANDING = (DomainState.PAUSED, DomainState.SUSPENDED)

log = logging.getLogger(__name__)


def finish_pending(host: Host, uuid: DomainUuid, name: str) -> tuple[str, ...]:
    """Deal with every journal of a domain; return what was done, in words.

    Raises ``LeftBehind`` when something could not be finished, ``JournalUnusable`` when a journal
    does not say what there is to do, and as it is what says that the domain needs attention.
    """
    done = []
    for leftover in host.catalog.leftovers(uuid):
        if leftover.unusable is not None:
            raise leftover.unusable
        try:
            done.append(_finish(host, leftover, uuid, name))
        except (KeyError, TypeError, ValueError) as error:
            why = f"its journal is damaged ({error!r})"
            raise LeftBehind(leftovers=(str(leftover.path),), why=why) from error
        except SnapvmError as error:
            if error.exit_status in (ExitStatus.ATTENTION, ExitStatus.INTERRUPTED):
                raise
            raise LeftBehind(leftovers=(str(leftover.path),), why=str(error)) from error
    for text in done:
        log.warning("%s", text)
    return tuple(done)


def correct_tags(host: Host, uuid: DomainUuid) -> tuple[str, ...]:
    """Mark the volumes of visible records as complete, where a killed take did not come to it."""
    report = host.lvm.report()
    new = argv.role_tag(Role.NEW)
    done = []
    for record in host.catalog.entries(uuid):
        if not isinstance(record, Record):
            continue
        found = (report.lv_from_uuid(disk.snapshot.uuid) for disk in record.disks)
        late = [volume.ref for volume in found if volume is not None and new in volume.tags]
        if late:
            host.lvm.retag(late, add=[argv.role_tag(Role.OK)], remove=[new])
            done.append(f"corrected the tags of {record.ref}")
    return tuple(done)


def remove_orphans(host: Host) -> tuple[str, ...]:
    """Remove volumes of a killed take or rollback that came to be after all was taken back.

    Only what carries our tags, has not become part of a record, and is named by no journal.
    """
    unfinished = {argv.role_tag(Role.NEW), argv.role_tag(Role.ROLL)}
    report = host.lvm.report()
    gone = [
        volume
        for volume in orphans.of(host, report)
        if volume.tags & unfinished and not volume.is_open
    ]
    host.lvm.remove([volume.ref for volume in gone], report)
    return tuple(f"removed the orphan {volume.ref}" for volume in gone)


def _finish(host: Host, leftover: Leftover, uuid: DomainUuid, name: str) -> str:
    if leftover.kind == swapping.JOURNAL:
        return _finish_rollback(host, leftover.intent, uuid, name)
    if leftover.kind == taking.STOP_JOURNAL:
        return _finish_stop(host, leftover.intent, uuid, name)
    if leftover.kind == "gone":
        return _finish_delete(host, leftover, name)
    return _take_back(host, leftover, name)


def _take_back(host: Host, leftover: Leftover, name: str) -> str:
    """Undo a take: the domain runs first, then what it made goes."""
    intent = leftover.intent
    if intent:
        taking.check_intent(intent)
        if intent["was_running"]:
            run_again(host, name)
        domain = _find(host, name)
        if domain is not None:
            host.hypervisor.abandon(domain)
            if intent.get("quiesce"):
                guestsystem.release(host, domain)
        _remove(host, intent["groups"], intent["set"], Role.NEW)
    host.catalog.forget(leftover.path)
    return f"took back the unfinished snapshot {name}@{leftover.id}"


def _remove(host: Host, groups: Iterable[str], set_: str, role: Role) -> None:
    """Remove what a set has in a role, where the groups it was made in have gone or not.

    In one that was renamed meanwhile it is an orphan, which `repair` without a domain removes.
    """
    there = {volume.vg for volume in host.lvm.report().volumes}
    for vg in dict.fromkeys(vg for vg in groups if vg in there):
        host.lvm.remove_set(vg, set_, (role,))


def _finish_stop(host: Host, journal: dict[str, Any], uuid: DomainUuid, name: str) -> str:
    """End a domain whose snapshot became whole; it may have been started again since."""
    domain = _find(host, name)
    is_whole = host.catalog.has_record(uuid, journal["record"], journal["set"])
    if is_whole and domain is not None and domain.state in _STANDING:
        host.hypervisor.stop(domain)
    host.catalog.end_journal(uuid, taking.STOP_JOURNAL)
    return f"finished stopping {name}" if is_whole else f"{name} is not to be stopped any more"


def _finish_delete(host: Host, leftover: Leftover, name: str) -> str:
    if leftover.intent:
        record = recordfile.from_dict(leftover.intent, str(leftover.path))
        host.lvm.remove([disk.snapshot for disk in record.disks])
    host.catalog.forget(leftover.path)
    return f"finished deleting {name}@{leftover.id}"


def _finish_rollback(host: Host, journal: dict[str, Any], uuid: DomainUuid, name: str) -> str:
    """Go on with a rollback that is past its point of no return; take any other back."""
    rollbackjournal.check(journal)
    set_, disks = journal["set"], journal["disks"]
    phase = Phase(journal["phase"])
    domain = _find(host, name)
    if phase is Phase.RESTORED and domain is not None:
        domain = _once_started(host, domain, uuid, journal)
    was_stopped = domain is None or domain.state is DomainState.SHUTOFF
    if phase is Phase.PREPARE and _is_past_return(host, journal, name, was_stopped=was_stopped):
        phase = Phase.SWAPPED
    if phase is Phase.PREPARE:
        return _take_rollback_back(host, journal, uuid, name)
    undo = recordfile.from_dict(journal["undo_record"], "the journal of a rollback")
    settle = partial(swapping.settle, host, set_, undo, disks)
    stuck = None
    if phase is not Phase.STARTED:
        record = host.catalog.get(uuid, journal["record"])
        target = domain or rollbackplan.vanished(record, journal.get("definition", ""))
        if phase is Phase.SWAPPED:
            _restore_disks(host, journal, record, target, is_stopped=was_stopped)
        if was_stopped:
            is_renewed = phase is Phase.SWAPPED and bool(journal.get(_SPOILED))
            if record.memory is not None and _is_new_boot(journal) and not is_renewed:
                settle()
                host.catalog.end_journal(uuid, swapping.JOURNAL)
                raise LeftOff(name, record.id)
            _start(host, journal, record, target, settle)
        stuck = _awaken(host, record, set_time=bool(journal.get("set_time", True)))
    settle()
    host.catalog.end_journal(uuid, swapping.JOURNAL)
    if stuck is not None:
        raise stuck
    return f"finished the rollback of {name} to {journal['record']}"


def _once_started(
    host: Host, domain: Domain, uuid: DomainUuid, journal: dict[str, Any]
) -> Domain | None:
    """Return the domain, or None, when its start has ended: libvirt or xl go on without snapvm.

    It stands still while its memory is read, and is off when that fails.  One that somebody paused
    looks the same, so this has an end.
    """
    record = host.catalog.get(uuid, journal["record"])
    if journal["paused"] or record.state is not DomainState.RUNNING or record.memory is None:
        return domain
    limit = Deadline(_START_SECONDS + record.memory.size_bytes / _SLOWEST_BYTES_PER_SECOND)
    found: Domain | None = domain
    while found is not None and found.state is DomainState.PAUSED and limit.left_seconds:
        time.sleep(_LOOK_SECONDS)
        found = _find(host, domain.name)
    return found


def _is_new_boot(journal: dict[str, Any]) -> bool:
    """Tell whether the domain may have been started, and ended, on the disks it went back to."""
    return bootid.is_over(str(journal.get("boot_id", "")))


def _is_past_return(host: Host, journal: dict[str, Any], name: str, *, was_stopped: bool) -> bool:
    """Tell whether the former domain is gone, and its disks are kept, though nothing says so yet.

    A thick one is the present still, and after a boot newer than what is kept of it, maybe.  Raises
    ``StartedTooSoon`` for one that was started on some of the clones.
    """
    set_, disks = journal["set"], journal["disks"]
    report = host.lvm.report()
    is_new_boot = _is_new_boot(journal)
    if is_new_boot and was_stopped and rollbackjournal.has_thick(disks):
        return False
    moved = takingback.have_moved(report, set_, disks, is_new_boot=is_new_boot)
    swapped = takingback.are_swapped(report, set_, disks)
    if moved and not was_stopped and not swapped:
        raise StartedTooSoon(name)
    return swapped and (was_stopped or moved)


def _take_rollback_back(host: Host, journal: dict[str, Any], uuid: DomainUuid, name: str) -> str:
    set_, disks = journal["set"], journal["disks"]
    if journal["was_running"]:
        run_again(host, name)  # first: it holds its disks open, and no name of theirs
    takingback.put_names_back(host.lvm, set_, disks)
    _remove(host, (disk["vg"] for disk in disks), set_, Role.ROLL)
    host.catalog.end_journal(uuid, swapping.JOURNAL)
    return f"took back the unfinished rollback of {name} to {journal['record']}"


def _start(
    host: Host,
    journal: dict[str, Any],
    record: Record,
    domain: Domain,
    settle: Callable[[], object],
) -> None:
    """Start the domain; one that does not start must not keep every command on it from working."""
    try:
        swapping.start_again(host, domain, record, paused=bool(journal["paused"]))
    except SnapvmError as error:
        raise swapping.give_up(host, record, journal, error, settle) from error


def _awaken(host: Host, record: Record, *, set_time: bool) -> StillFrozen | None:
    """Let the guest's system go on, or return why it does not; anything less is just told."""
    awakened = guestsystem.awaken(host, record, set_time=set_time)
    for note in awakened.notes:
        log.warning("%s", note)
    return awakened.stuck


def _restore_disks(
    host: Host, journal: dict[str, Any], record: Record, domain: Domain, *, is_stopped: bool
) -> None:
    """Write thick disks back once more from the start; not below a domain somebody started.

    What it has written by then onto the clones of thin disks fits nothing.
    """
    uuid = record.domain_uuid
    if rollbackjournal.has_thick(journal["disks"]) and not is_stopped:
        spoiled = {**journal, "phase": Phase.SWAPPED.value, _SPOILED: True}
        host.catalog.write_journal(uuid, swapping.JOURNAL, spoiled)
        raise StartedTooSoon(domain.name)
    if not is_stopped:
        log.warning("%s was started afresh meanwhile, not from memory", domain.name)
    try:
        if journal.get(_SPOILED):
            takingback.renew_clones(host.lvm, journal["set"], journal["disks"])
        swapping.copy_back(host.lvm, journal["disks"], Silent())
        if is_stopped:
            undo_id = SnapshotId(journal["undo_record"]["id"])
            swapping.put_side_files_back(host, record, undo_id, domain)
    except SnapvmError as error:
        raise HalfBack(domain.name, record.id, str(error)) from error
    reached = {**journal, "phase": Phase.RESTORED.value}
    host.catalog.write_journal(uuid, swapping.JOURNAL, reached)


def _find(host: Host, name: str) -> Domain | None:
    try:
        return host.hypervisor.find(name)
    except UnknownDomain:
        return None


def run_again(host: Host, name: str) -> None:
    """Make a domain run that stands still; harmless for one that does, or is not there."""
    domain = _find(host, name)
    if domain is not None and domain.state in _STANDING:
        host.hypervisor.resume(domain)


@contextmanager
def running_when_interrupted(host: Host, domain: Domain) -> Iterator[None]:
    """Have a window in the block; the domain runs even if a signal met the end of it unshielded.

    A signal may come in the instant in which the driver begins to end its window and has not yet
    put off what comes.
    """
    try:
        yield
    except Interrupted:
        if domain.state is DomainState.RUNNING:
            with undisturbed():
                run_again(host, domain.name)
        raise
