"""The volumes of a take: stores before the window, snapshots in it, and proof of them after it.

And what the domain's small files hold in the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from snapvm import sidefiles, turns
from snapvm.clock import Deadline, WindowClock
from snapvm.errors import SnapvmError
from snapvm.failures import (
    CaptureFailed,
    CommandFailed,
    CommandTimedOut,
    LackedMeanwhile,
    SnapshotFailed,
)
from snapvm.host import Host
from snapvm.hypervisor.base import Capture
from snapvm.lvm import argv, belonging, crew, device, preflight, thinpool
from snapvm.lvm.belonging import Belonging
from snapvm.lvm.crew import Crews
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report
from snapvm.lvm.warm import WarmLvm
from snapvm.model import DiskRecord, Role, SideFile, SideKind, VolumeKind
from snapvm.planning import PlannedDisk, TakePlan
from snapvm.refusals import HostLacks
from snapvm.sidefiles import Held
from snapvm.workers import workers

_AT_WORK_SECONDS = 5.0
"""How long an lvm that is still at work on a group, and keeps it locked, is waited for while the
domain stands still: it may yet have suspended disks go on itself."""


def make_stores(host: Host, plan: TakePlan) -> None:
    """Before the window: make what the thick disks' snapshots are going to keep their copies in."""
    thick = [disk for disk in plan.disks if disk.kind is VolumeKind.THICK]
    if thick:
        host.lvm.load_snapshot_target()
    for disk in thick:
        vg = disk.volume.vg
        with turns.taken(host.settings.run_dir, [vg]), _failing_for(disk):
            host.lvm.make_store(vg, disk.snapshot_name, disk.store_bytes, _tags(plan, disk))


def catch(
    host: Host, plan: TakePlan, lvms: Crews, capture: Capture, clock: WindowClock
) -> tuple[Held, ...]:
    """Inside the window: make all snapshots, group beside group, the memory's part beside them.

    Returns what the domain's small files hold.  Raises ``SnapshotFailed`` for the first disk that
    has none; the others are not begun then, and memory that is still being written is given up.
    Raises ``LackedMeanwhile`` where there is no room for a thread or a process.
    """
    deadline = Deadline(host.settings.window_limit_seconds)

    def snapshot(lvm: WarmLvm, disk: PlannedDisk) -> None:
        with clock.part(f"lvm {disk.target}"):
            _snapshot(plan, lvm, disk, deadline)

    jobs = crew.shared(lvms, [(disk.volume.vg, disk) for disk in plan.disks], snapshot)
    with (
        _no_refusal_any_more(plan),
        workers(len(jobs) + 2) as pool,
        ExitStack() as failing,
    ):
        # Before the pool waits for all of its threads.
        failing.callback(_give_up, host, plan, capture)
        work = [*map(pool.submit, jobs), pool.submit(capture.arm)]
        held = pool.submit(_read_side_files, plan, clock, deadline)
        _, running = wait(work, return_when=FIRST_EXCEPTION)
        if running:
            _give_up(host, plan, capture)
        for future in work:  # the disks in their order: of several failures the first is told
            future.result()
        failing.pop_all()
        return held.result()


def _give_up(host: Host, plan: TakePlan, capture: Capture) -> None:
    """Have memory given up, once the disks that a failing lvm left suspended go on.

    QEMU hears nothing while its main thread waits for a disk that it flushes, and neither ends what
    it writes nor lets the domain run (QEMU, migration/migration.c, migration_completion).
    """
    disks = [disk.volume for disk in plan.disks]
    with suppress(SnapvmError):  # the undoing of the take tries again
        if any(device.is_suspended(disk.path) for disk in disks):
            host.lvm.wake(disks, host.lvm.report(_AT_WORK_SECONDS))
    capture.give_up()


@contextmanager
def _no_refusal_any_more(plan: TakePlan) -> Iterator[None]:
    """Raise what the host lacks as a failure: a refusal says that nothing was touched."""
    try:
        yield
    except HostLacks as error:
        raise LackedMeanwhile(plan.domain.name, why=str(error), way_out=error.hint()) from error


def _read_side_files(plan: TakePlan, clock: WindowClock, deadline: Deadline) -> tuple[Held, ...]:
    if not plan.side_places:
        return ()
    with clock.part("nvram and tpm"):
        return sidefiles.read(plan.side_places, deadline.left_seconds)


def stored(
    plan: TakePlan, folder: Path, held: tuple[Held, ...], *, has_memory: bool
) -> tuple[SideFile, ...]:
    """Write what the small files held into the record's folder; called once memory is written.

    Raises ``CaptureFailed`` for a guest that has changed its UEFI variables since the window: QEMU
    does not write-protect flash, as it does memory (migration/ram.c, ram_write_tracking_start).
    The image may have the variables as they are now, or half of them, and has the last word when
    memory comes back.
    """
    flash = [place for place in plan.side_places if place.kind is SideKind.NVRAM]
    then = tuple(each for each in held if each.kind is SideKind.NVRAM)
    if has_memory and sidefiles.read(flash) != then:
        raise CaptureFailed(
            domain=plan.domain.name,
            why="it changed its UEFI variables while its memory was written: try again",
        )
    return sidefiles.store(folder, held)


def _snapshot(plan: TakePlan, lvm: WarmLvm, disk: PlannedDisk, deadline: Deadline) -> None:
    volume, name = disk.volume, disk.snapshot_name
    limit_seconds = deadline.left_seconds
    if not limit_seconds:
        why = f"the {deadline.seconds:g} s that the window may take are over"
        raise SnapshotFailed(target=disk.target, volume=str(volume), why=why)
    with _failing_for(disk), _of_the_whole(deadline):
        if disk.kind is VolumeKind.THICK:
            lvm.attach(volume, name, disk.chunk_bytes, limit_seconds=limit_seconds)
        else:
            lvm.snapshot(volume, name, _tags(plan, disk), limit_seconds=limit_seconds)


@contextmanager
def _of_the_whole(deadline: Deadline) -> Iterator[None]:
    """Have a command that ran out of time name the limit that is set, not what was left of it."""
    try:
        yield
    except CommandTimedOut as error:
        raise CommandTimedOut(argv=error.argv, seconds=deadline.seconds) from error


def _tags(plan: TakePlan, disk: PlannedDisk) -> tuple[str, ...]:
    whose = Belonging(
        domain_uuid=plan.domain.uuid,
        domain=plan.domain.name,
        id=plan.id,
        target=disk.target,
        disks=len(plan.disks),
        created=datetime.now(UTC),
        order=plan.order,
    )
    return belonging.tags(plan.set, disk.volume, Role.NEW, whose)


@contextmanager
def _failing_for(disk: PlannedDisk) -> Iterator[None]:
    """Let the failure of a command say which disk has no snapshot for it."""
    try:
        yield
    except (CommandFailed, CommandTimedOut) as error:
        raise SnapshotFailed(target=disk.target, volume=str(disk.volume), why=str(error)) from error


def verified(host: Host, plan: TakePlan) -> tuple[DiskRecord, ...]:
    """Return the disks of the record; each snapshot is seen to be as asked for, and to last."""
    report = host.lvm.report()
    host.lvm.mark_lost(report)
    disks = []
    for disk in plan.disks:
        made = report.lv_from_name(disk.volume.vg, disk.snapshot_name)
        flaw = "is gone" if made is None else _flaw(report, plan, disk, made)
        if made is None or flaw:
            raise SnapshotFailed(
                target=disk.target,
                volume=str(disk.volume),
                why=f"{disk.volume.vg}/{disk.snapshot_name} {flaw}",
            )
        _require_bearing(report, disk, made)
        disks.append(
            DiskRecord(
                target=disk.target,
                volume=disk.volume,
                snapshot=made.ref,
                kind=disk.kind,
                size_bytes=made.disk_bytes,
            )
        )
    thick = [disk.snapshot for disk in disks if disk.kind is VolumeKind.THICK]
    host.lvm.bring_to_disk([*(disk.volume for disk in disks), *thick])
    return tuple(disks)


def _flaw(report: Report, plan: TakePlan, disk: PlannedDisk, made: LogicalVolume) -> str:
    """Say why a volume is not the snapshot that was asked for; empty when it is.

    It may be a store that is no snapshot yet.  LVM was told the name of the disk, which somebody
    may have given to another volume: a domain runs on below a renamed one.
    """
    if argv.set_tag(plan.set) not in made.tags or made.is_writable or not made.origin:
        return "was not made as requested"
    origin = report.lv_from_name(made.vg, made.origin)
    if origin is None or origin.uuid != disk.volume.uuid:
        return f"is not of the disk, but of the volume that is now called {made.origin}"
    return f"is lost: {preflight.loss(made)}" if made.is_lost else ""


def _require_bearing(report: Report, disk: PlannedDisk, made: LogicalVolume) -> None:
    """Raise ``SnapshotFailed`` when the pool has no room left for what the domain writes.

    A block that the domain shares with a snapshot is copied when it is written, and the copy needs
    room; when the snapshot is removed the domain has its blocks to itself again.
    """
    pool = report.lv_from_name(made.vg, made.pool) if made.pool else None
    trouble = thinpool.trouble_of(pool) if pool is not None else ""
    if pool is not None and trouble:
        raise SnapshotFailed(
            target=disk.target,
            volume=str(disk.volume),
            why=f"{pool.ref} has no room for what will be written from now on: {trouble}",
        )
