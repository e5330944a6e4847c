"""LVM in the manner of pylvm2: look volumes up, make them, rename, tag, remove.

Every effect is one lvm command and is never killed: LVM in its critical section may leave devices
suspended (lvmteam/lvm2#75).
"""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from snapvm import durable, retry
from snapvm.errors import SnapvmError
from snapvm.failures import CommandFailed, CommandTimedOut, StillAtWork
from snapvm.lvm import argv, copyback, device, holders, kernelstatus, reading
from snapvm.lvm.device import Number, UuidOfDevice
from snapvm.lvm.duplicates import Reader
from snapvm.lvm.holders import Holder
from snapvm.lvm.logicalvolume import LogicalVolume
from snapvm.lvm.report import Report, VolumeGroup
from snapvm.lvm.warm import PROGRAM, WarmLvm
from snapvm.model import LvRef, LvUuid, Progress, Role
from snapvm.process import Completed, Conversation, Runner

log = logging.getLogger(__name__)

EFFECT_LIMIT_SECONDS = 300.0
DELETE_LIMIT_SECONDS = 3600.0
"""With issue_discards=1 in lvm.conf LVM discards all of a volume first (lvm2, pv_manip.c), which
takes minutes for a large one.  It is not for a dead path: LVM has just answered."""
REPORT_LIMIT_SECONDS = 120.0
_UNARCHIVED = (
    os.strerror(errno.ENOSPC),
    "Couldn't create temporary archive name",
    "Cannot archive volume group metadata",
)
"""What LVM says where it cannot write into /etc/lvm: that there is no room; that a file cannot be
made, without the reason, which may be a want of inodes; and what it says on a file system that has
become read-only (lvm2, lib/format_text)."""
_LATE_SECONDS = 10.0
"""How long an lvm that was given up is waited for once more, when what it made is removed."""

CopyBack = Callable[[Runner, LvRef, LvRef, Progress], None]
"""What brings a disk back to a thick snapshot of it; reads and writes devices."""


class Lvm:
    """The LVM of this host."""

    def __init__(
        self,
        runner: Runner,
        uuid_of_device: UuidOfDevice = device.dm_uuid,
        copy_back: CopyBack = copyback.copy_back,
        holders_of: Callable[[LvRef, Number | None], tuple[Holder, ...]] = holders.of,
        written_sectors: Callable[[Path | Number], int | None] = device.written_sectors,
        sync_device: Callable[[Path], None] = durable.sync_device,
    ) -> None:
        self._runner = runner
        self._reader = Reader(runner)
        self._copy_back = copy_back
        self._sync_device = sync_device
        self._late: dict[str, list[Conversation]] = {}
        """By group: the lvms that did not end when they were told to."""
        self._given_up: set[str] = set()
        """The groups in which an lvm of ours may yet make something, and nobody waits for it."""
        self._unread: set[str] = set()
        """The groups that LVM could not read, and which have been told of."""
        self.uuid_of_device = uuid_of_device
        self.holders_of = holders_of
        """Tells what of this host lies on a volume, by the number of its device or by its name."""
        self.written_sectors = written_sectors
        """Tells how much was ever written to a device, by name or number; None: nobody says."""

    def report(self, limit_seconds: float = REPORT_LIMIT_SECONDS) -> Report:
        """Ask once for everything there is to know about all volumes.

        It waits for whoever changes a group, which a discard of all of a large volume makes long.
        """
        return self._told(reading.ARGV, limit_seconds)

    def full_report(self) -> Report:
        """Return a report that also tells which volumes LVM activates by itself, if it can tell.

        It is one command, because each command reads all groups.
        """
        try:
            return self._told(reading.FULL_ARGV, REPORT_LIMIT_SECONDS)
        except CommandFailed as error:
            log.info("that a volume is not activated of itself is not known: %s", error)
            return self.report()

    def _told(self, command: argv.Argv, limit_seconds: float) -> Report:
        return retry.report(lambda: self._reader.parse(self._asked(command, limit_seconds)))

    def _asked(self, command: argv.Argv, limit_seconds: float) -> str:
        """Return what LVM reports: of all groups, or all but those that it cannot read.

        Those are told of, and are like any group that LVM does not show: whoever needs one finds
        that out, and nobody else has to care.
        """
        try:
            return self._runner.run(command, timeout_seconds=limit_seconds).stdout
        except CommandFailed as failure:
            told = reading.in_full(failure)
            unread = reading.unread_groups(told)
            if not unread:
                raise told from None
            if not self._unread.issuperset(unread):
                self._unread.update(unread)
                why = " ".join(told.stderr.split())
                log.warning("LVM cannot read the volume group %s: %s", ", ".join(unread), why)
            return failure.stdout

    def filled(
        self, report: Report, disks: Iterable[LogicalVolume], limit_seconds: float
    ) -> Report:
        """Return a report that tells how full the snapshots of thick disks are just now.

        The kernel alone is asked, which knows none of LVM's locks; or LVM, where it does not say.
        """
        command = argv.statuses(volume.ref for volume in kernelstatus.around(report, disks))
        try:
            said = self._runner.run(command, timeout_seconds=limit_seconds).stdout
        except CommandFailed:  # one of them has just been removed
            return self.report(limit_seconds)
        return kernelstatus.applied(report, said)

    def explained(self, report: Report, refs: Iterable[LvRef]) -> Report:
        """Return a report that can also tell why one of these volumes is not in it.

        LVM is asked about its groups for that, but only where it shows nothing of one, which is
        seldom.
        """
        if report.groups is not None or all(map(report.decides, refs)):
            return report

        def ask() -> tuple[VolumeGroup, ...]:
            return reading.parse_groups(self._asked(reading.GROUPS_ARGV, REPORT_LIMIT_SECONDS))

        return Report(report.volumes, retry.report(ask), report.doubled)

    def extend_threshold_percent(self, profile: str) -> float:
        """Ask above which fill a thin pool of a profile, or of none, is to be extended.

        100 when LVM does not say.
        """
        try:
            return reading.parse_threshold(self._runner.run(argv.extend_threshold(profile)).stdout)
        except CommandFailed:
            return 100.0

    def version(self) -> tuple[int, ...]:
        """Return which LVM this is, such as 2, 3, 31; empty, which is before all, if unknown."""
        try:
            return reading.parse_version(self._runner.run(reading.VERSION_ARGV).stdout)
        except CommandFailed:
            return ()

    @contextmanager
    def warmed(self, groups: Iterable[str]) -> Iterator[Mapping[str, Sequence[WarmLvm]]]:
        """Have an lvm waiting for each time a group is named: none has to start in the window."""
        talks: dict[str, list[Conversation]] = defaultdict(list)
        try:
            with ExitStack() as stack:
                for vg in groups:
                    talks[vg].append(stack.enter_context(self._runner.converse(PROGRAM)))
                yield {vg: [WarmLvm(talk) for talk in those] for vg, those in talks.items()}
        finally:
            for vg, those in talks.items():
                late = [talk for talk in those if not talk.ended(0)]
                if late:
                    self._late[vg] = self._late.get(vg, []) + late

    def load_snapshot_target(self) -> None:
        """Have the kernel load what thick snapshots need, before several lvms ask for it at once.

        The second of two is told that there is none while the module only begins (kmod, modprobe:
        one that is coming counts as loaded).  A failure is only logged: LVM tries again.
        """
        try:
            self._runner.run(argv.snapshot_target(), timeout_seconds=REPORT_LIMIT_SECONDS)
        except (CommandFailed, CommandTimedOut) as error:
            log.info("the module of thick snapshots is not loaded yet: %s", error)

    def make_store(self, vg: str, name: str, size_bytes: int, tags: Iterable[str]) -> None:
        """Make what a thick snapshot is going to keep its copies in, ready to be attached."""
        self._make(vg, argv.new_store(vg, name, size_bytes, tags))
        made = [LvRef(vg=vg, lv=name, uuid=LvUuid(""))]
        self.deactivate(made)
        self._do(argv.read_only(made))

    def copy_back(self, snapshot: LvRef, disk: LvRef, progress: Progress) -> None:
        """Make a thick disk equal to a snapshot of it; see ``copyback.copy_back``."""
        self._copy_back(self._runner, snapshot, disk, progress)

    def clone(self, snapshot: LvRef, name: str, tags: Iterable[str], read_ahead: str) -> None:
        """Make a writable copy of a snapshot, with a device."""
        self._make(snapshot.vg, argv.thin_clone(snapshot, name, tags, read_ahead))

    def rename(self, vg: str, old: str, new: str) -> None:
        """Give a volume another name."""
        self._do(argv.rename(vg, old, new))

    def activate(self, volumes: Iterable[LvRef]) -> None:
        """Make the devices of volumes appear."""
        self._do(argv.activate(volumes))

    def deactivate(self, volumes: Iterable[LvRef]) -> None:
        """Take the devices of volumes away."""
        self._do(argv.deactivate(volumes))

    def wake(self, volumes: Iterable[LvRef], known: Report | None = None) -> None:
        """Have volumes go on that a killed lvm left suspended: no write to them comes back."""
        found = map((known or self.report()).lv_of, volumes)
        stuck = [volume.ref for volume in found if volume is not None and volume.is_suspended]
        if stuck:
            log.warning("an lvm has left suspended: %s", ", ".join(map(str, stuck)))
            self._do_anyway(argv.refresh(stuck))

    def shelve(self, volume: LvRef, tags: Iterable[str]) -> None:
        """Turn a former disk into something that is kept and not used."""
        self._do_anyway(argv.shelve(volume, tags))

    def keep_from_boot(self, volumes: Iterable[LvRef]) -> None:
        """Keep LVM from activating volumes by itself; may be done again."""
        self._do_anyway(argv.not_at_boot(volumes))

    def skip_activation(self, volumes: Iterable[LvRef]) -> None:
        """Have LVM activate volumes only when told so explicitly; may be done again."""
        self._do_anyway(argv.skip_activation(volumes))

    def retag(
        self, volumes: Iterable[LvRef], *, add: Iterable[str] = (), remove: Iterable[str] = ()
    ) -> None:
        """Change the tags of volumes."""
        self._do_anyway(argv.retag(volumes, add=add, remove=remove))

    def mark_lost(self, report: Report) -> None:
        """Have the snapshots that are lost called so after a boot too; see ``argv.TAG_LOST``.

        A failure is only logged.
        """
        lost = [volume.ref for volume in report.volumes if volume.is_newly_lost]
        try:
            if lost:
                self.retag(lost, add=[argv.TAG_LOST])
        except SnapvmError as error:
            names = ", ".join(map(str, lost))
            log.warning("after a reboot LVM may not know that %s is lost: %s", names, error)

    def bring_to_disk(self, volumes: Iterable[LvRef]) -> None:
        """See that a power cut takes back nothing that LVM has done to the groups of volumes.

        LVM writes metadata past the page cache, and leaves it in the caches of the disks (lvm2,
        bcache.c, bcache_flush).  Where a journal lies on another disk it would outlast what it
        tells of.  Flushing a volume flushes the disks below it; of the copies of a group's metadata
        LVM takes the newest.  A failure is only logged: what was done is done.
        """
        for volume in volumes:
            try:
                self._sync_device(volume.path)
            except OSError as error:  # that of a domain that is off need not have a device
                log.info("the disks below %s are not flushed: %s", volume, error)

    def remove_set(
        self, vg: str, set_: str, role: Role, limit_seconds: float = EFFECT_LIMIT_SECONDS
    ) -> None:
        """Remove the volumes of a set that are in a role; harmless when none is.

        Raises ``StillAtWork`` when an lvm that was given up may yet make some.
        """
        command = argv.remove_set(vg, set_, role)
        self._do_anyway(command, limit_seconds)
        if vg in self._late or vg in self._given_up:
            self.outlast(vg)
            self._do_anyway(command, limit_seconds)

    def outlast(self, vg: str) -> None:
        """Wait a moment for the lvms that were given up; raise ``StillAtWork`` when one goes on.

        Before they have ended nobody can judge what the group holds: they may yet change it.
        """
        have_ended = all(talk.ended(_LATE_SECONDS) for talk in self._late.get(vg, ()))
        if not have_ended or vg in self._given_up:
            raise StillAtWork(group=vg)
        self._late.pop(vg, None)

    def remove_set_where_there(self, groups: Iterable[str], set_: str, role: Role) -> None:
        """Remove what a set has in a role, from those groups that LVM shows."""
        there = {volume.vg for volume in self.report().volumes}
        for vg in dict.fromkeys(vg for vg in groups if vg in there):
            self.remove_set(vg, set_, role, DELETE_LIMIT_SECONDS)

    def removals(
        self, groups: Iterable[str], set_: str, role: Role
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what removes the volumes of a set in a role, group by group, with its name."""
        for vg in groups:
            yield f"the {role} volumes in {vg}", partial(self.remove_set, vg, set_, role)

    def remove(self, volumes: Iterable[LvRef], known: Report | None = None) -> None:
        """Remove volumes of ours by uuid, wherever they are now; harmless when there is none.

        Whoever has just looked hands over what is ``known``.  Raises ``VolumeRefused``, and removes
        nothing, when it is not clear which volume one is (``Report.lv_of``).
        """
        # A record names groups as they were: one may have another name by now, or be gone.
        known = known or self.report()
        by_group: dict[str, list[LvUuid]] = {}
        for volume in map(known.lv_of, volumes):
            if volume is not None:
                by_group.setdefault(volume.vg, []).append(volume.uuid)
        for vg, uuids in by_group.items():
            self._do_anyway(argv.remove_volumes(vg, uuids), DELETE_LIMIT_SECONDS)

    def _do_anyway(self, command: argv.Argv, limit_seconds: float = EFFECT_LIMIT_SECONDS) -> None:
        """Remove volumes, or end what comes before a removal: also where LVM archives nothing.

        It writes a copy of the group's metadata into /etc/lvm first, or does nothing, where memory
        images may have filled the file system: then no delete of them would come to its end.
        """
        try:
            self._do(command, limit_seconds)
        except CommandFailed as failure:
            if not any(said in failure.stderr for said in _UNARCHIVED):
                raise
            log.warning("LVM cannot keep a copy of its metadata: %s", failure)
            self._do(argv.without_archive(command), limit_seconds)

    def _make(self, vg: str, command: argv.Argv) -> None:
        try:
            self._do(command)
        except CommandTimedOut:
            self._given_up.add(vg)
            raise

    def _do(self, command: argv.Argv, limit_seconds: float = EFFECT_LIMIT_SECONDS) -> Completed:
        return self._runner.run(argv.patient(command), timeout_seconds=limit_seconds, kill=False)
