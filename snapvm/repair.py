"""Finishing or taking back what an earlier snapvm left behind when it was killed.

Every command on a domain runs this first, under the domain's lock; a journal that is there then
belongs to nobody alive.  Each step may itself be killed and run again.
"""

from __future__ import annotations

import logging
from typing import Any

from snapvm import recordfile, swapping
from snapvm.catalog import Leftover
from snapvm.errors import LeftBehind, SnapvmError, UnknownDomain
from snapvm.host import Host
from snapvm.lvm import argv
from snapvm.model import Domain, DomainState, DomainUuid, Record, Role
from snapvm.swapping import Phase

log = logging.getLogger(__name__)


def finish_pending(host: Host, uuid: DomainUuid, name: str) -> tuple[str, ...]:
    """Deal with every journal of a domain; return what was done, in words.

    Raises ``LeftBehind`` when something could not be finished.
    """
    done = []
    for leftover in host.catalog.leftovers(uuid):
        try:
            done.append(_finish(host, leftover, uuid, name))
        except (KeyError, TypeError, ValueError) as error:
            why = f"its journal is damaged ({error!r})"
            raise LeftBehind(leftovers=(str(leftover.path),), why=why) from error
        except SnapvmError as error:
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

    Only what carries our tags, has not become part of a record, and is named by no journal; while
    there is a record that cannot be read, nothing.
    """
    records = list(host.catalog.entries())
    if not all(isinstance(record, Record) for record in records):
        return ()
    known = {record.set for record in records if isinstance(record, Record)}
    for uuid, _ in host.catalog.domains():
        known |= {str(left.intent.get("set")) for left in host.catalog.leftovers(uuid)}
    unfinished = {argv.role_tag(Role.NEW), argv.role_tag(Role.ROLL)}
    orphans = [
        volume
        for volume in host.lvm.report().tagged(argv.TAG_OURS)
        if volume.tags & unfinished and not volume.tags & set(map(argv.set_tag, known))
    ]
    host.lvm.remove([volume.ref for volume in orphans if not volume.is_open])
    return tuple(f"removed the orphan {volume.ref}" for volume in orphans if not volume.is_open)


def _finish(host: Host, leftover: Leftover, uuid: DomainUuid, name: str) -> str:
    if leftover.kind == "rollback":
        return _finish_rollback(host, leftover.intent, uuid, name)
    if leftover.kind == "gone":
        return _finish_delete(host, leftover, name)
    return _take_back(host, leftover, name)


def _take_back(host: Host, leftover: Leftover, name: str) -> str:
    """Undo a take: the domain runs first, then what it made goes."""
    intent = leftover.intent
    if intent:
        domain = _find(host, name)
        _run_again(host, domain, was_running=bool(intent["was_running"]))
        if domain is not None:
            host.hypervisor.abandon(domain)
        for vg in intent["groups"]:
            host.lvm.remove_set(vg, intent["set"], (Role.NEW,))
    host.catalog.forget(leftover.path)
    return f"took back the unfinished snapshot {name}@{leftover.id}"


def _finish_delete(host: Host, leftover: Leftover, name: str) -> str:
    if leftover.intent:
        record = recordfile.from_dict(leftover.intent, str(leftover.path))
        host.lvm.remove([disk.snapshot for disk in record.disks])
    host.catalog.forget(leftover.path)
    return f"finished deleting {name}@{leftover.id}"


def _finish_rollback(host: Host, journal: dict[str, Any], uuid: DomainUuid, name: str) -> str:
    """Go on with a rollback that is past its point of no return; take any other back."""
    set_, disks = journal["set"], journal["disks"]
    phase = swapping.Phase(journal["phase"])
    domain = _find(host, name)
    was_stopped = domain is None or domain.state is DomainState.SHUTOFF
    swapped = swapping.are_swapped(host.lvm.report(), set_, disks)
    if phase is Phase.PREPARE and was_stopped and swapped:
        phase = Phase.SWAPPED
    if phase is Phase.PREPARE:
        swapping.put_names_back(host.lvm, set_, disks)
        _run_again(host, domain, was_running=bool(journal["was_running"]))
        for vg in dict.fromkeys(disk["vg"] for disk in disks):
            host.lvm.remove_set(vg, set_, (Role.ROLL,))
        host.catalog.end_rollback(uuid)
        return f"took back the unfinished rollback of {name} to {journal['record']}"
    if phase is Phase.SWAPPED and was_stopped:
        record = host.catalog.get(uuid, journal["record"])
        target = domain or swapping.vanished(record, journal.get("definition", ""))
        swapping.start_again(host, target, record, paused=bool(journal["paused"]))
    undo = recordfile.from_dict(journal["undo_record"], "the journal of a rollback")
    swapping.settle(host, set_, undo, disks)
    return f"finished the rollback of {name} to {journal['record']}"


def _find(host: Host, name: str) -> Domain | None:
    try:
        return host.hypervisor.find(name)
    except UnknownDomain:
        return None


def _run_again(host: Host, domain: Domain | None, *, was_running: bool) -> None:
    """Make a domain run that a killed snapvm left standing still."""
    stands_still = (DomainState.PAUSED, DomainState.SUSPENDED)
    if was_running and domain is not None and domain.state in stands_still:
        host.hypervisor.resume(domain)
