"""The steps of a `take`; ``snapvm.consistency`` knows their order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from snapvm import (
    checksum,
    durable,
    imageroom,
    images,
    naming,
    occupancy,
    ordering,
    planning,
    retry,
    sidefiles,
)
from snapvm.capturewords import IS_NOT_POSSIBLE
from snapvm.clock import WindowClock
from snapvm.errors import SnapvmError
from snapvm.failures import CaptureFailed
from snapvm.host import Host
from snapvm.lvm import argv
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.model import (
    DiskRecord,
    Domain,
    DomainState,
    MemoryRecord,
    Progress,
    Record,
    RecordKind,
    Role,
    SideFile,
    SnapshotId,
)
from snapvm.planning import TakePlan
from snapvm.refusals import HostLacks, SnapshotExists

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeRequest:
    """What the user asked `take` for."""

    domain: str
    name: str | None = None
    note: str = ""
    with_memory: bool = True
    stop: bool = False
    """The domain does not run on: it is shut off when it is captured."""
    quiesce: bool = False
    """The guest's agent freezes its file systems, so that the disks are usable alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """What the window brought in."""

    created: datetime
    method: str
    memory: MemoryRecord | None
    disks: tuple[DiskRecord, ...]
    side_files: tuple[SideFile, ...]
    written_bytes: int = 0
    """What the image takes on the disk."""


def plan(host: Host, domain: Domain, request: TakeRequest) -> TakePlan:
    """Check everything and decide; nothing is touched.

    Raises ``BadName`` and the kinds of ``Refused``.
    """
    id_ = _new_id(host, domain, request.name)
    imageroom.require_writable(host.settings)
    host.hypervisor.check_capture(domain, with_memory=request.with_memory)
    if request.quiesce:
        host.hypervisor.agent.check(domain)
    drives = host.hypervisor.drives(domain)
    report = host.lvm.report()
    volumes = planning.resolve(domain, drives.disks, report, host.lvm.uuid_of_device)
    occupancy.require_held(domain, volumes)
    _require_at_rest(host, domain, volumes.values())
    planning.check_pools(host.lvm, report, volumes.values(), host.settings)
    with_memory = request.with_memory and domain.state.has_memory
    if with_memory:
        imageroom.check(host.settings, domain.memory_bytes)
    settings, versions = host.settings, host.hypervisor.versions(domain)
    sparse = with_memory and images.shall_be_sparse(
        domain.hypervisor, settings.image_format, settings.compress, versions
    )
    places = host.hypervisor.side_places(domain)
    missing = sidefiles.check(domain.name, places)
    set_ = naming.new_set()
    return TakePlan(
        domain=domain,
        id=id_,
        set=set_,
        order=ordering.order(host.catalog, domain.uuid, domain.name, datetime.now(UTC)),
        named=request.name is not None,
        note=request.note,
        with_memory=with_memory,
        stop=request.stop and domain.state.has_memory,
        sparse=sparse,
        quiesce=request.quiesce,
        disks=planning.plan_disks(volumes, report, id_, set_, host.settings),
        omitted=drives.omitted + missing,
        side_places=places,
        versions=versions,
    )


def _require_at_rest(host: Host, domain: Domain, volumes: Iterable[LogicalVolume]) -> None:
    """Raise ``VolumeRefused`` for a domain that is off when somebody has a disk of it for long.

    udev looks into a device once its last user has closed it.
    """
    uuids = {volume.dm_uuid for volume in volumes if volume.is_open}

    def look() -> None:
        report = host.lvm.report()
        occupancy.require_at_rest(
            domain, [each for each in report.volumes if each.dm_uuid in uuids]
        )

    if uuids and domain.state is DomainState.SHUTOFF:
        retry.unused(look)


def _new_id(host: Host, domain: Domain, name: str | None) -> SnapshotId:
    uuids = {domain.uuid, *host.catalog.uuids_of(domain.name)}

    def is_taken(id_: str) -> bool:
        return any(host.catalog.has(uuid, id_) for uuid in uuids)

    if name is not None:
        if is_taken(naming.check_name(name)):
            raise SnapshotExists(domain=domain.name, id=name)
        return SnapshotId(name)
    return naming.free_id(naming.stamp(datetime.now(UTC)), is_taken)


def laid_out(plan: TakePlan, folder: Path, caught: Caught, progress: Progress) -> Caught:
    """Give the image the layout that restores fastest; the domain runs meanwhile.

    Raises ``CaptureFailed`` for one that nobody could restore.
    """
    if caught.memory is not None and images.is_mislabelled(
        folder / caught.memory.file, caught.memory
    ):
        raise CaptureFailed(
            domain=plan.domain.name,
            why="libvirt calls its image sparse, which it is not, and would not start it again; "
            'set snapshot_image_format in qemu.conf to "raw", or leave --capture libvirt out',
        )
    if caught.memory is None or not plan.sparse:
        return caught
    progress.phase("converting the image for a fast restore")
    path = folder / caught.memory.file
    free_bytes = imageroom.free_bytes(folder)
    memory, why_not = images.made_sparse(path, caught.memory, free_bytes, progress)
    if why_not:
        _require_restored_plain(plan, path, memory, why_not)
    told = f"; a sparse image {IS_NOT_POSSIBLE}: {why_not}" if why_not else ""
    return replace(caught, memory=memory, method=caught.method + told)


def _require_restored_plain(plan: TakePlan, path: Path, memory: MemoryRecord, why_not: str) -> None:
    """Raise ``CaptureFailed`` when an image stayed plain on a host that restores no plain ones."""
    try:
        images.require_reader(path, memory, plan.versions)
    except HostLacks as lacks:
        raise CaptureFailed(
            domain=plan.domain.name,
            why=f"its image could not be made sparse ({why_not}), and {lacks}; "
            "take the snapshot with --compress zstd",
        ) from lacks


def sealed(plan: TakePlan, folder: Path, caught: Caught, progress: Progress) -> Caught:
    """Make the image say whether its domain runs when anyone restores it; add its checksum."""
    if caught.memory is None:
        return caught
    path = folder / caught.memory.file
    images.seal(path, caught.memory, running=plan.domain.state is DomainState.RUNNING)
    progress.phase("reading the image back")
    with durable.failing_as_storage(path):
        memory = replace(caught.memory, checksum=checksum.of_file(path, progress))
        written_bytes = durable.bytes_on_disk(path)
    return replace(caught, memory=memory, written_bytes=written_bytes)


def record(plan: TakePlan, caught: Caught, clock: WindowClock) -> Record:
    """Put the record of a take together."""
    domain = plan.domain
    memory = caught.memory
    return Record(
        id=plan.id,
        set=plan.set,
        kind=RecordKind.DISKS if memory is None else RecordKind.FULL,
        created=caught.created.isoformat(timespec="milliseconds"),
        named=plan.named,
        note=plan.note,
        domain=domain.name,
        domain_uuid=domain.uuid,
        hypervisor=domain.hypervisor,
        state=domain.state,
        memory_bytes=domain.memory_bytes,
        vcpus=domain.vcpus,
        capture=caught.method,
        memory=memory,
        disks=caught.disks,
        omitted=plan.omitted,
        timing=clock.timing(),
        written_bytes=caught.written_bytes,
        versions=plan.versions,
        quiesced=plan.quiesce,
        side_files=caught.side_files,
        order=plan.order,
    )


def mark_complete(host: Host, record: Record) -> None:
    """Correct the tags; the record is what counts, and repair corrects them too."""
    try:
        host.lvm.retag(
            [disk.snapshot for disk in record.disks],
            add=[argv.role_tag(Role.OK)],
            remove=[argv.role_tag(Role.NEW)],
        )
    except SnapvmError as error:  # whatever it is: the snapshot is whole
        what = (
            "the volumes of %s are still tagged as unfinished, which `snapvm repair` corrects: %s"
        )
        log.warning(what, record.ref, error)
