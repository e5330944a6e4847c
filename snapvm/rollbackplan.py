"""What a rollback is going to do: decided before anything is touched."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from snapvm import (
    imagefacts,
    imageroom,
    images,
    naming,
    occupancy,
    ordering,
    planning,
    recordeddomain,
    retry,
    sidefiles,
    swapplan,
)
from snapvm.host import Host
from snapvm.lvm.report import Report
from snapvm.model import (
    DiskRecord,
    DmUuid,
    Domain,
    DomainState,
    HypervisorKind,
    LvUuid,
    OmittedDisk,
    Record,
    RecordKind,
    Timing,
    VolumeKind,
)
from snapvm.planning import RollbackPlan, SwapDisk
from snapvm.refusals import DiskRefused, HostLacks, Refused, VolumeRefused

_CALLED = {HypervisorKind.LIBVIRT: "libvirt's KVM", HypervisorKind.XEN: "Xen"}
_LEFT_ALONE = "the rollback left it as it was"


def plan(host: Host, record: Record) -> RollbackPlan:
    """Prove every precondition and decide; nothing is touched, but what is lost is marked so.

    Raises the kinds of ``Refused``, among them ``RecordUnusable`` for a snapshot that is gone, and
    ``GroupAway`` for one that need not be.
    """
    imageroom.require_writable(host.settings)
    _require_hypervisor(host, record)
    domain = recordeddomain.find(host, record)
    image = _image(host, record, domain)
    for side in record.side_files:
        sidefiles.require_whole(host.catalog.folder(record.domain_uuid, record.id), side)
    sidefiles.check(domain.name, host.hypervisor.side_places(domain))
    host.hypervisor.check_restore(
        domain,
        image.path,
        memory_bytes=image.memory_bytes,
        cookie=image.cookie,
        starts=planning.is_started(domain, record),
    )
    report = _report(host, record, domain)
    host.lvm.mark_lost(report)
    set_ = naming.new_set()
    wanted = f"{naming.UNDO}{naming.stamp(datetime.now(UTC))}"
    undo_id = naming.free_id(wanted, lambda id_: host.catalog.has(record.domain_uuid, id_))
    booted, uuid_of_device = host.hypervisor.boots_as(domain), host.lvm.uuid_of_device
    occupancy.require_no_overlay(record, (domain, booted), report, uuid_of_device)
    occupancy.require_nothing_upon(record, host.hypervisor.relying(domain), report, uuid_of_device)
    occupant = occupancy.of(host.hypervisor, domain, uuid_of_device)
    disks = swapplan.plan_swaps(record, occupant, report, set_, undo_id, host)
    current = {disk.target: each for disk in disks if (each := report.lv_of(disk.current))}
    sources = [each for each in (report.lv_of(disk.snapshot) for disk in disks) if each]
    replaced = {each.dm_uuid for each in current.values()}
    if image.path is not None:
        occupancy.require_named(imagefacts.devices(image.path.parent), current, uuid_of_device)
    others = _others(host, record, domain, booted, replaced)
    unbooted = occupancy.unbooted(host.hypervisor, booted, current, uuid_of_device)
    if record.memory is None and planning.is_started(domain, record):
        occupancy.require_booted(record, unbooted, current)
    planning.check_pools(host.lvm, report, current.values(), host.settings, sources=sources)
    return RollbackPlan(
        record=record,
        domain=domain,
        set=set_,
        undo_id=undo_id,
        disks=disks,
        order=ordering.order(host.catalog, record.domain_uuid, record.domain, datetime.now(UTC)),
        others=others,
        omitted=occupant.omitted,
        unbooted=unbooted,
    )


def _require_hypervisor(host: Host, record: Record) -> None:
    """Raise ``HostLacks`` for memory of another hypervisor: a host may have been booted with it."""
    if record.memory is not None and record.hypervisor is not host.hypervisor.kind:
        raise HostLacks(
            what=f"{_CALLED[record.hypervisor]}, under which the memory of {record.ref} was "
            f"captured: now it runs {_CALLED[host.hypervisor.kind]}",
            remedy="boot this host as it was booted then, and roll back there",
        )


def _report(host: Host, record: Record, domain: Domain) -> Report:
    """Return what LVM has, once the disks of a domain that is off have been let go.

    udev looks into a device when its last user has closed it.  Of one that somebody has for longer
    the report tells all the same.
    """

    def ask() -> Report:
        return host.lvm.explained(host.lvm.full_report(), (disk.snapshot for disk in record.disks))

    report = ask()
    if domain.state is not DomainState.SHUTOFF:
        return report
    in_use = {each.dm_uuid for _, each in occupancy.replaced(record, report) if each.is_open}

    def look() -> Report:
        later = ask()
        for volume in filter(None, map(later.lv_from_dm_uuid, in_use)):
            occupancy.require_unused(volume)
        return later

    if in_use:
        with suppress(VolumeRefused):
            report = retry.unused(look)
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """What the domain is restored from."""

    path: Path | None = None
    """None where the record has no memory."""
    memory_bytes: int = 0
    cookie: str = ""
    """See ``images.cookie``."""


def _image(host: Host, record: Record, domain: Domain) -> _Image:
    """Return the image of a record once it is known that this host can restore it.

    Raises ``BadImage``, ``RecordUnusable``, ``HostLacks`` and ``DomainRefused``.
    """
    memory = record.memory
    if memory is None:
        return _Image()
    path = host.catalog.path(record, memory.file)
    images.check(path, memory)
    images.require_reader(path, memory, host.hypervisor.versions(domain))
    cookie, leaves = images.cookie(path, memory), images.processor(path, memory)
    host.hypervisor.check_processor(domain, cookie, leaves, record.versions)
    # A guest may have given memory back before it was captured: its image is smaller then.
    memory_bytes = min(record.memory_bytes, memory.size_bytes)
    return _Image(path=path, memory_bytes=memory_bytes, cookie=cookie)


def _others(
    host: Host, record: Record, domain: Domain, booted_as: Domain, replaced: Collection[DmUuid]
) -> tuple[str, ...]:
    """Return the disks left as they are: those that the domain has now, or is to be booted with.

    Raises ``DomainRefused`` when a record without memory would have it booted with one of them.
    """
    is_off = domain.state is DomainState.SHUTOFF

    def besides(whose: Domain) -> tuple[str, ...]:
        disks = host.hypervisor.drives(whose).disks
        return tuple(occupancy.others(disks, replaced, host.lvm.uuid_of_device, is_off=is_off))

    try:
        booted = besides(booted_as)
    except Refused as error:
        if record.memory is None and not is_off:
            raise
        booted = _unsuited(record, error)
    occupancy.require_no_more(record, booted)
    return booted if is_off else tuple(dict.fromkeys((*besides(domain), *booted)))


def _unsuited(record: Record, error: Refused) -> tuple[str, ...]:
    """Return a disk that the domain has got since the record was made, and that is no volume."""
    if not isinstance(error, DiskRefused):
        return ()
    return (error.target,) if error.target not in {disk.target for disk in record.disks} else ()


def undo_record(plan: RollbackPlan) -> Record:
    """Return the record of what is current before the rollback: its disks, no memory."""
    record = plan.record
    return Record(
        id=plan.undo_id,
        set=plan.set,
        kind=RecordKind.UNDO,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        named=False,
        note=f"the disks before the rollback to {record.id}",
        domain=record.domain,
        domain_uuid=record.domain_uuid,
        hypervisor=record.hypervisor,
        state=plan.domain.state,
        memory_bytes=plan.domain.memory_bytes,
        vcpus=plan.domain.vcpus,
        capture="none: the disks as a rollback found them",
        memory=None,
        disks=tuple(_kept(disk) for disk in plan.disks),
        omitted=(
            *(OmittedDisk(target=other, why=_LEFT_ALONE) for other in plan.others),
            *plan.omitted,
        ),
        timing=Timing(pause_ms=0, total_ms=0),
        written_bytes=0,
        order=plan.order,
    )


def _kept(disk: SwapDisk) -> DiskRecord:
    # A thick disk's present is kept by a snapshot that is yet to be made.
    uuid = LvUuid("") if disk.kind is VolumeKind.THICK else disk.current.uuid
    return DiskRecord(
        target=disk.target,
        volume=disk.current,
        snapshot=replace(disk.current, lv=disk.undo_name, uuid=uuid),
        kind=disk.kind,
        size_bytes=disk.size_bytes,
    )
