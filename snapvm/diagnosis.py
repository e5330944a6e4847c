"""What a `take` of a domain would do, and all that stands in its way; nothing stays changed.

The driver may set QEMU, and the host's permission for it, as for a `take`: it is the only way to
hear whether it can be, and is set back at once (``Hypervisor.foresee``).
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from snapvm import imageroom, images, occupancy, planning, sidefiles
from snapvm.errors import SnapvmError
from snapvm.host import Host
from snapvm.lvm import thinpool
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.model import CaptureMethod, Domain, GuestDisk, OmittedDisk
from snapvm.refusals import DiskRefused, DomainRefused, VolumeRefused
from snapvm.settings import Settings
from snapvm.severalfailures import noting

MANY_THICK_SNAPSHOTS = 5
"""Of one disk: from so many on `doctor` advises against more."""
DEARER_BY_EACH_PERCENT = 33
"""How much longer a thick snapshot takes for each that there is: with 5 it took 2.8 times, with 20
7.3 times as long as with none (``make bench-lvm``)."""
_NEARLY = 0.9
"""Of a limit of a pool: what is fuller is told of before it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """A disk, the volume under it, and where a snapshot of it finds room."""

    target: str
    volume: LogicalVolume
    pool: LogicalVolume | None
    store_bytes: int
    """What a thick snapshot of it takes from its group; 0 for a thin one."""
    thick_snapshots: int
    """How many it has already, whoever made them."""


@dataclass(slots=True, kw_only=True)
class Diagnosis:
    """What was found out; each refusal is one that a `take` would end with."""

    domain: Domain
    versions: dict[str, str]
    capture: str = ""
    """How memory would be captured, and why that way; empty when it would not be."""
    agent: str = ""
    """Why no agent in the guest can freeze file systems; no hindrance to a plain `take`."""
    disks: list[Footing] = field(default_factory=list)
    omitted: tuple[OmittedDisk, ...] = ()
    free_bytes: int = 0
    """Room for memory images; 0 as well where the state folder cannot be asked."""
    refusals: list[SnapvmError] = field(default_factory=list)


def look(host: Host, name: str) -> Diagnosis:
    """Ask everything a `take` asks, and go on after a refusal; raise ``UnknownDomain``."""
    domain = host.hypervisor.find(name)
    found = Diagnosis(domain=domain, versions=host.hypervisor.versions(domain))
    with noting(found.refusals):
        found.free_bytes = imageroom.free_bytes(host.settings.state_dir)
        imageroom.require_writable(host.settings)
    with noting(found.refusals):
        host.hypervisor.check_capture(domain, with_memory=True)
        if domain.state.has_memory:
            found.capture = host.hypervisor.foresee(domain)
    found.agent = _why_no_agent(host, domain)
    if domain.state.has_memory:
        with noting(found.refusals):
            imageroom.check(host.settings, domain.memory_bytes)
        with noting(found.refusals):
            settings = host.settings
            images.shall_be_sparse(
                domain.hypervisor, settings.image_format, settings.compress, found.versions
            )
    with noting(found.refusals):
        drives = host.hypervisor.drives(domain)
        found.omitted = drives.omitted
        for disk in drives.disks:
            with noting(found.refusals):
                _stand_on(host, found, disk)
        _check_together(host, found, drives.disks)
    with noting(found.refusals):
        _check_orders(host, found)
    with noting(found.refusals):
        found.omitted += sidefiles.check(domain.name, host.hypervisor.side_places(domain))
    # Disks of one pool are refused one by one, for the same reason.
    found.refusals = list({refused.message(): refused for refused in found.refusals}.values())
    return found


def _why_no_agent(host: Host, domain: Domain) -> str:
    try:
        host.hypervisor.agent.check(domain)
    except DomainRefused as refused:
        return refused.why
    return ""


def advice(found: Diagnosis, settings: Settings) -> tuple[str, ...]:
    """Return what a `take` does not refuse, and its user would rather know before."""
    pools = {str(disk.pool.ref): disk.pool for disk in found.disks if disk.pool is not None}
    return (
        *_of_siblings(found.disks),
        *_of_precopy(found),
        *chain.from_iterable(_of_fill(name, pool, settings) for name, pool in pools.items()),
        *_of_folders(settings),
    )


def _of_siblings(disks: Iterable[Footing]) -> Iterator[str]:
    """Advise against many thick snapshots of a disk: in the pause LVM loads each of them anew."""
    for disk in disks:
        if disk.thick_snapshots >= MANY_THICK_SNAPSHOTS:
            yield (
                f"{disk.target} has {disk.thick_snapshots} thick snapshots; each makes the next "
                f"one's part of the pause some {DEARER_BY_EACH_PERCENT} % longer, and every first "
                "write slower; keep fewer (`snapvm prune`), or move the disk to a thin pool, where "
                "their number does not matter"
            )


def _of_precopy(found: Diagnosis) -> Iterator[str]:
    """Warn of too little room: `precopy` stops a guest whose memory would not fit a second time."""
    memory_bytes = found.domain.memory_bytes
    is_precopy = found.capture.startswith(f"{CaptureMethod.PRECOPY}:")
    if is_precopy and found.free_bytes < 2 * memory_bytes + imageroom.SPARE_BYTES:
        yield (
            f"the state folder has {found.free_bytes >> 20} MiB free, less than twice the guest's "
            f"memory ({memory_bytes >> 20} MiB): by precopy it may stand still while much of that "
            "is written; make room (`snapvm prune`), or keep images elsewhere (`state_dir`)"
        )


def _of_fill(name: str, pool: LogicalVolume, settings: Settings) -> Iterator[str]:
    metadata_limit_percent = min(
        settings.pool_metadata_limit_percent, thinpool.metadata_ceiling_percent(pool)
    )
    for what, percent, limit in (
        ("data", pool.data_percent, settings.pool_data_limit_percent),
        ("metadata", pool.metadata_percent, metadata_limit_percent),
    ):
        if percent is not None and limit * _NEARLY < percent <= limit:
            yield (
                f"the {what} of pool {name} is {percent:.0f} % full, and above {limit:.4g} % "
                f"no snapshot is taken: extend it ({thinpool.extending(pool, what)}), or delete "
                "snapshots (`snapvm prune`)"
            )


def _of_folders(settings: Settings) -> Iterator[str]:
    for what, folder in (("records", settings.state_dir / "domains"), ("locks", settings.run_dir)):
        if place := _open_to_others(folder):
            quoted = shlex.quote(str(place))
            yield (
                f"others than root may write to {place}: who can put {what} there is as good as "
                f"root; `chown root:root {quoted}; chmod go-w {quoted}`, or keep them elsewhere"
            )


def _open_to_others(folder: Path) -> Path | None:
    """Return the first folder, of this and those above, in which others than root may put files."""
    for place in (folder, *folder.parents):
        with suppress(OSError):  # it is not there yet
            status = place.stat()
            mode = status.st_mode
            by_group = bool(mode & stat.S_IWGRP) and status.st_gid not in (0, os.getegid())
            is_open = (by_group or bool(mode & stat.S_IWOTH)) and not mode & stat.S_ISVTX
            if is_open or status.st_uid not in (0, os.geteuid()):
                return place
    return None


def _stand_on(host: Host, found: Diagnosis, disk: GuestDisk) -> None:
    """Note the footing of a disk, and what keeps it alone from being snapshotted, or raise that."""
    report = host.lvm.report()
    volume = planning.resolve(found.domain, [disk], report, host.lvm.uuid_of_device)[disk.target]
    pool = report.lv_from_name(volume.vg, volume.pool) if volume.pool else None
    store_bytes = planning.store_bytes(report, volume, host.settings)
    found.disks.append(
        Footing(
            target=disk.target,
            volume=volume,
            pool=pool,
            store_bytes=store_bytes,
            thick_snapshots=len(report.snapshots_of(volume)),
        )
    )
    with noting(found.refusals):
        occupancy.require_held(found.domain, {disk.target: volume})
        occupancy.require_at_rest(found.domain, [volume])
    planning.check_pools(host.lvm, report, [volume], host.settings)


def _check_together(host: Host, found: Diagnosis, disks: Iterable[GuestDisk]) -> None:
    """Raise what keeps disks from being snapshotted together, when each alone might be."""
    report, settings = host.lvm.report(), host.settings
    with noting(found.refusals):
        planning.check_stores(report, [disk.volume for disk in found.disks], settings)
    if not any(isinstance(refused, DiskRefused | VolumeRefused) for refused in found.refusals):
        volumes = planning.resolve(found.domain, disks, report, host.lvm.uuid_of_device)
        planning.check_pools(host.lvm, report, volumes.values(), settings)


def _check_orders(host: Host, found: Diagnosis) -> None:
    """Raise ``HostLacks`` for an lvm that takes no orders, as the one of the pause has to."""
    with host.lvm.warmed(disk.volume.vg for disk in found.disks[:1]):
        pass
