"""Volumes of ours that nothing names: neither a record nor a journal.

Most are left over and may go.  Some only look like it, and nothing here removes those.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum

from snapvm import naming
from snapvm.errors import Locked, SnapvmError
from snapvm.host import Host
from snapvm.lvm import argv, belonging, holders, preflight
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import DmUuid, DomainUuid, Record, Role
from snapvm.refusals import VolumeRefused
from snapvm.severalfailures import noting

UNFINISHED = frozenset({argv.role_tag(Role.NEW), argv.role_tag(Role.ROLL)})
_ROLL = argv.role_tag(Role.ROLL)

log = logging.getLogger(__name__)


class Kind(Enum):
    """What a volume is that nothing names."""

    ORPHAN = "orphan"
    """Left over; it may go."""
    HELD = "held"
    """Left over, and in use, or built upon by somebody, or not to be had from LVM now."""
    TAKEN = "taken"
    """A snapshot, as such read-only, that somebody made writable: it may be a disk by now."""
    DISK = "disk"
    """A clone to which a rollback has given the name of a disk: it is that disk."""
    PRESENT = "present"
    """A thick snapshot that keeps what a disk was before a rollback."""
    ELSEWHERE = "elsewhere"
    """Of a domain the catalog has no folder for: another state folder may name it."""
    ANOTHERS = "another's"
    """Made by another host, which may have a state folder of its own that names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A volume that nothing names, and what it is."""

    volume: LogicalVolume
    kind: Kind
    held: VolumeRefused | None = None
    """What keeps one that is left over from being removed."""


def strays(host: Host, report: Report) -> tuple[Stray, ...]:
    """Return every volume with our tag whose set nobody knows, sorted by name.

    There are none while a record or a journal cannot be read, which might name any of them.
    """
    known = _known_sets(host)
    if known is None:
        return ()
    tags = {argv.set_tag(set_) for set_ in known}
    # One without a set is a user's, who gave it such a tag.
    made = (v for v in report.ours() if any(map(naming.is_set, argv.sets_in(v.tags))))
    nameless = sorted((v for v in made if not v.tags & tags), key=lambda v: str(v.ref))
    domains = {uuid for uuid, _ in host.catalog.domains()}
    return tuple(_stray(volume, _kind(volume, domains), report) for volume in nameless)


def lasting(host: Host, report: Report) -> tuple[Stray, ...]:
    """Return those that a second look finds too, and whose domain nobody works on.

    A volume that a delete was about to remove, or a take to name, when the report was made is none
    of them.
    """
    first = {stray.volume.dm_uuid for stray in strays(host, report)}
    if not first:
        return ()
    names = dict(host.catalog.domains())
    second = [stray for stray in strays(host, host.lvm.report()) if stray.volume.dm_uuid in first]
    uuids = {_domain_of(stray.volume) for stray in second}
    busy = {uuid for uuid in uuids if _is_worked_on(host, uuid, names)}
    return tuple(stray for stray in second if _domain_of(stray.volume) not in busy)


def of(host: Host, report: Report) -> tuple[LogicalVolume, ...]:
    """Return the volumes that nothing names and that may be removed."""
    return tuple(s.volume for s in strays(host, report) if s.kind is Kind.ORPHAN)


def is_clone(volume: LogicalVolume) -> bool:
    """Tell whether a rollback made it to be a disk: it belongs to no record, ever."""
    return _ROLL in volume.tags and volume.is_thin_volume


def is_disk(volume: LogicalVolume) -> bool:
    """Tell whether it is such a clone, and has got the name of a disk."""
    return is_clone(volume) and not _is_named_by_set(volume)


def remove(
    host: Host, volumes: Sequence[LogicalVolume], failures: list[SnapvmError]
) -> tuple[LogicalVolume, ...]:
    """Remove those of the volumes that still nothing names and nobody uses; return them.

    Each under the lock of its domain, and none of one that somebody works on: only the lock tells
    of a take that writes its journal in another state folder.  What LVM says of those that it does
    not remove goes into ``failures``, and keeps none of the others.
    """
    names = dict(host.catalog.domains())
    gone: list[LogicalVolume] = []
    for uuid, wanted in _by_domain(volumes):
        try:
            with _locked(host, uuid, names):
                gone += _remove(host, wanted, failures)
        except Locked as busy:
            log.info("left alone: %s", busy)
    return tuple(gone)


def _stray(volume: LogicalVolume, kind: Kind, report: Report) -> Stray:
    if kind is Kind.ORPHAN:
        try:
            _check_unneeded(volume, report)
        except VolumeRefused as held:
            return Stray(volume=volume, kind=Kind.HELD, held=held)
    return Stray(volume=volume, kind=kind)


def _check_unneeded(volume: LogicalVolume, report: Report) -> None:
    """Raise ``VolumeRefused`` when something uses a volume or is built upon it, or LVM holds it."""
    if volume.is_open:
        raise VolumeRefused(
            volume=str(volume.ref),
            why="it is in use",
            remedy=f"end what uses it ({holders.finding_users(volume.ref)})",
        )
    preflight.check_removable(report, volume, whose="")
    preflight.check_nothing_above(volume, report)


def _kind(volume: LogicalVolume, domains: set[DomainUuid]) -> Kind:
    whose = _domain_of(volume)
    # A state folder that is not mounted knows no domain, and nothing is ours to remove then.
    if not domains or (whose is not None and whose not in domains):
        return Kind.ELSEWHERE
    if belonging.is_of_another_host(volume.tags):
        return Kind.ANOTHERS
    if is_disk(volume):
        return Kind.DISK
    if _ROLL in volume.tags and volume.is_thick_snapshot:
        return Kind.PRESENT
    if volume.is_writable and not volume.tags & UNFINISHED:
        return Kind.TAKEN
    return Kind.ORPHAN


def _is_named_by_set(volume: LogicalVolume) -> bool:
    """Tell whether it has the name it was made with; see ``naming.clone_lv``."""
    return any(set_ and set_ in volume.name for set_ in argv.sets_in(volume.tags))


def _by_domain(
    volumes: Sequence[LogicalVolume],
) -> Iterator[tuple[DomainUuid | None, set[DmUuid]]]:
    """Yield the uuids of volumes, those of one domain together; None for those that name none."""
    found: dict[DomainUuid | None, set[DmUuid]] = {}
    for volume in volumes:
        found.setdefault(_domain_of(volume), set()).add(volume.dm_uuid)
    yield from found.items()


def _domain_of(volume: LogicalVolume) -> DomainUuid | None:
    whose = belonging.read(volume.tags)
    return None if whose is None else whose.domain_uuid


def _is_worked_on(host: Host, uuid: DomainUuid | None, names: dict[DomainUuid, str]) -> bool:
    try:
        with _locked(host, uuid, names):
            return False
    except Locked:
        return True


def _locked(
    host: Host, uuid: DomainUuid | None, names: dict[DomainUuid, str]
) -> AbstractContextManager[None]:
    if uuid is None or uuid not in names:
        return nullcontext()
    return host.catalog.locked(uuid, names[uuid], waits=False)


def _remove(host: Host, wanted: set[DmUuid], failures: list[SnapvmError]) -> list[LogicalVolume]:
    report = host.lvm.report()
    still = [volume for volume in of(host, report) if volume.dm_uuid in wanted]
    known = len(failures)
    for group in dict.fromkeys(volume.vg_uuid for volume in still):
        with noting(failures):
            host.lvm.remove([v.ref for v in still if v.vg_uuid == group], report)
    if len(failures) == known:
        return still
    # Of several in a group LVM removes those that it can.
    left = host.lvm.report()
    return [volume for volume in still if left.lv_from_dm_uuid(volume.dm_uuid) is None]


def _known_sets(host: Host) -> set[str] | None:
    # A take that ends meanwhile is found as a record, and a delete that begins as a journal.
    journals = _sets_at_work(host)
    entries = list(host.catalog.entries())
    journals |= _sets_at_work(host)
    records = [entry for entry in entries if isinstance(entry, Record)]
    if len(records) < len(entries) or None in journals:
        return None
    return {set_ for set_ in journals if set_ is not None} | {record.set for record in records}


def _sets_at_work(host: Host) -> set[str | None]:
    """Return the sets that journals name; None is in it where one does not say."""
    domains = host.catalog.domains()
    return {left.set for uuid, _ in domains for left in host.catalog.leftovers(uuid)}
