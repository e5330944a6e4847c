"""Is everything a record needs still there, and is there nothing else?  Nothing is changed.

The invariants of a host: a visible record refers only to an image and volumes that exist and are
what was recorded; nothing of ours exists that neither a record nor a journal names; no work was
left unfinished.  And what will be a problem soon: pools that run full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from snapvm import identity, images, orphans, sidefiles
from snapvm.errors import Locked, SnapvmError, typed
from snapvm.host import Host
from snapvm.lvm import argv, away, belonging, health, preflight, thinpool
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.model import DiskRecord, DomainUuid, Progress, Record
from snapvm.orphans import UNFINISHED, Kind, Stray
from snapvm.recordfolder import Damaged
from snapvm.refusals import RecordNewer, Refused, VolumeRefused
from snapvm.severalfailures import noting


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be."""

    subject: str
    """What it is about: ``dom@id``, a volume, a domain."""
    problem: str
    remedy: str = ""
    orphan: LogicalVolume | None = None
    """The volume that could be removed, where that is the remedy."""


def look(host: Host, name: str | None, progress: Progress, *, deep: bool) -> tuple[Finding, ...]:
    """Check all domains or one; with ``deep`` every memory image is read.

    Raises ``UnknownDomain`` for one that neither has snapshots nor is known to its hypervisor.
    """
    domains = identity.chosen(host.catalog, host.hypervisor, name)
    found: list[Finding] = []
    whole: list[Record] = []
    for uuid, known in domains:
        progress.phase(f"checking {known}")
        found += _unfinished(host, uuid, known)
        for entry in host.catalog.entries(uuid):
            if isinstance(entry, Damaged):
                found.append(_of_damaged(entry))
            else:
                found += _if_still_there(host, entry, _of_files(host, entry, progress, deep=deep))
                whole.append(entry)
    # Reading images may take an hour, in which snapshots come and go: LVM is asked after it.
    snapshots = (disk.snapshot for record in whole for disk in record.disks)
    report = host.lvm.explained(host.lvm.report(), snapshots)
    for record in whole:
        found += _if_still_there(host, record, _of_volumes(record, report))
    if name is None:
        found += [_of_stray(stray) for stray in orphans.lasting(host, report)]
        found += _of_pools(host, report)
        found += _of_groups(report)
    return tuple(found)


def _if_still_there(host: Host, record: Record, found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return what was found of a record, and nothing when it has been deleted meanwhile.

    A record is hidden before the first of its parts goes.
    """
    findings = tuple(found)
    is_there = not findings or host.catalog.has_record(record.domain_uuid, record.id, record.set)
    return findings if is_there else ()


def _of_damaged(entry: Damaged) -> Finding:
    return Finding(
        subject=f"{entry.domain}@{entry.id}",
        problem=f"its record cannot be read: {entry.why}",
        remedy=entry.trouble().hint(),
    )


def _unfinished(host: Host, uuid: DomainUuid, name: str) -> Iterator[Finding]:
    """Yield what is left of killed work on a domain; journals are no finding while a snapvm works.

    Where there is no journal the lock is not asked for: a `take` that begins just now would be
    refused.
    """
    if not host.catalog.leftovers(uuid):
        return
    try:
        with host.catalog.locked(uuid, name, waits=False):
            leftovers = host.catalog.leftovers(uuid)
    except Locked:
        return
    for leftover in leftovers:
        problem, remedy = f"work on it was not finished ({leftover.path.name})", ""
        if leftover.unusable is not None:
            problem, remedy = str(leftover.unusable), leftover.unusable.hint()
        yield Finding(
            subject=f"{name}@{leftover.id}" if leftover.id else name,
            problem=problem,
            remedy=remedy or typed("repair", name),
        )


def _of_files(host: Host, record: Record, progress: Progress, *, deep: bool) -> Iterator[Finding]:
    of_memory: list[SnapvmError] = []
    delete = typed("delete", record.ref)
    with noting(of_memory):
        if record.memory is not None:
            path = host.catalog.path(record, record.memory.file)
            images.check(path, record.memory)
            if deep:
                images.check_contents(path, record.memory, progress)
    of_sides: list[SnapvmError] = []
    with noting(of_sides):
        folder = host.catalog.folder(record.domain_uuid, record.id)
        for side in record.side_files:
            sidefiles.require_whole(folder, side)
    for what, failures in (("memory", of_memory), ("UEFI variables or vTPM", of_sides)):
        for error in failures:
            remedy = f"it cannot be rolled back to; if no backup has that file: {delete}"
            # The file may be as it was, and the disk is not, or this snapvm is too old for it.
            if isinstance(error, RecordNewer) or not isinstance(error, Refused):
                remedy = error.hint()
            yield Finding(subject=record.ref, problem=f"its {what}: {error}", remedy=remedy)


def _of_volumes(record: Record, report: Report) -> Iterator[Finding]:
    yield from filter(None, (_of_volume(record, disk, report) for disk in record.disks))


def _of_volume(record: Record, disk: DiskRecord, report: Report) -> Finding | None:
    """Tell what is wrong with the snapshot of a disk, or will soon be; None when nothing is."""

    def found(problem: str, remedy: str) -> Finding:
        problem = f"disk {disk.target}: {problem}"
        return Finding(subject=record.ref, problem=problem, remedy=remedy)

    try:
        volume, absence = report.lv_of(disk.snapshot), away.of_disk(disk, report)
    except VolumeRefused as unclear:
        return found(str(unclear), unclear.hint())
    it = f"its volume {disk.snapshot if volume is None else volume.ref}"
    if absence is not None:
        why = f"volume group {absence.group} {absence.why}"
        return found(f"{it} is out of reach: {why}", absence.remedy)
    trouble = health.trouble(disk, volume)
    if trouble:
        when = "when that has ended: " if volume is not None and volume.is_merging else ""
        delete = typed("delete", record.ref)
        return found(f"{it} {trouble}", f"it cannot be rolled back to; {when}{delete}")
    if volume is not None and preflight.is_nearly_full(volume):
        fill = f"{volume.data_percent:.0f} % of its room is used"
        remedy = "take another snapshot with a larger --cow-size, and delete this one"
        return found(f"{it} will be lost soon: {fill}", remedy)
    return None


def _of_stray(stray: Stray) -> Finding:
    """Tell of a volume that nothing names, and what may be done with it."""
    volume = stray.volume
    whose = belonging.read(volume.tags)
    untagging = argv.untagging(volume.ref, volume.tags)
    back = ""
    if whose is not None and not volume.tags & UNFINISHED:
        back = f"snapvm catalog rebuild --dry-run tells if {whose.id} of its domain can be had "
        back += "back; "
    removing = f"if nothing needs it: lvremove {volume.ref}"
    if orphans.is_disk(volume):
        removing = "it has the name of a disk; if its domain runs well on it, remove snapvm's tags "
        removing += f"from it: {untagging}"
    orphan = None
    match stray.kind:
        case Kind.ORPHAN:
            problem = "it was made by snapvm, but belongs to no snapshot"
            remedy = f"{back}snapvm check --fix removes it"
            orphan = volume
        case Kind.HELD:
            why, needed = (stray.held.why, stray.held.hint()) if stray.held else ("", "")
            problem = f"it was made by snapvm, belongs to no snapshot, and cannot be removed: {why}"
            remedy = f"{back}{needed and f'{needed}; then: '}snapvm check --fix"
        case Kind.ELSEWHERE:
            problem = "it was made by snapvm, and this catalog does not know its domain"
            remedy = "is the state folder mounted, and is it the right one (--state-dir)? if so: "
            remedy += f"{back}{removing}"
        case Kind.ANOTHERS:
            problem = "it was made by snapvm on another host, whose catalog may include it"
            remedy = "is it in `snapvm list`, or in progress, there? if not, as when that host was "
            remedy += f"installed anew: {back}{removing}"
        case Kind.TAKEN:
            problem = "it was made by snapvm, belongs to no snapshot, and has been made writable"
            remedy = f"if it is in use, remove snapvm's tags from it: {untagging}; if "
            remedy += f"nothing needs it: lvremove {volume.ref}"
        case Kind.DISK:
            problem = "it is a disk: a rollback that is no longer on record gave it its name"
            remedy = f"if its domain runs well on it, remove snapvm's tags from it: {untagging}"
        case Kind.PRESENT:
            problem = f"it holds what {volume.vg}/{volume.origin} was before a rollback that "
            problem += "is no longer on record"
            remedy = f"if that disk is as it should be: lvremove {volume.ref}"
    return Finding(subject=str(volume.ref), problem=problem, remedy=remedy, orphan=orphan)


def _of_pools(host: Host, report: Report) -> Iterator[Finding]:
    """Yield what is wrong with the pools that snapshots live in.

    One that the kernel has not fills up no further, and nothing is known of it.
    """
    used = {(volume.vg, volume.pool) for volume in report.ours() if volume.pool}
    pools = (report.lv_from_name(vg, name) for vg, name in sorted(used))
    for pool in (pool for pool in pools if pool is not None and thinpool.is_in_kernel(pool)):
        try:
            thinpool.check(
                pool,
                data_limit_percent=host.settings.pool_data_limit_percent,
                metadata_limit_percent=host.settings.pool_metadata_limit_percent,
            )
        except VolumeRefused as refused:
            yield Finding(subject=str(pool.ref), problem=refused.why, remedy=refused.hint())


def _of_groups(report: Report) -> Iterator[Finding]:
    """Yield the groups with snapshots in which LVM makes no more volumes, or soon will not."""
    groups = {volume.vg: volume for volume in report.ours()}
    for vg, volume in sorted(groups.items()):
        try:
            preflight.check_devices(report, volume)
        except VolumeRefused as refused:
            yield Finding(subject=vg, problem=refused.why, remedy=refused.hint())
        free_bytes = volume.vg_metadata_free_bytes
        if preflight.is_short_of_metadata(free_bytes):
            yield Finding(
                subject=vg,
                problem=f"the volume group has room for only {free_bytes >> 10} KiB more metadata: "
                "each volume needs about 1 KiB, and without room every take will be refused",
                remedy="delete snapshots of any domain, or volumes, that nothing needs; LVM cannot "
                f"enlarge it (vgs -o +vg_mda_free {vg})",
            )
