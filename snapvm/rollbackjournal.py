"""The journal of a rollback: how far it is, and what repair needs to finish it or take it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from snapvm import recordfile
from snapvm.domainrun import DomainRun
from snapvm.host import Host
from snapvm.jsonvalues import (
    Wrong,
    each,
    lv_uuid,
    lvm_name,
    one_of,
    optional,
    required,
    set_name,
    texts,
    vg_uuid,
)
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import (
    DomainState,
    DomainUuid,
    LvRef,
    LvUuid,
    Record,
    SnapshotId,
    VgUuid,
    VolumeKind,
)
from snapvm.planning import RollbackPlan, SwapDisk
from snapvm.recordfolder import Work

_WRITTEN, _SPOILED, _LEFT_OFF = "written", "spoiled", "left_off"
"""The keys that a journal has only once there is something to tell."""


class Phase(StrEnum):
    """How far a rollback is, as its journal says."""

    PREPARE = "prepare"
    """It is taken back: the former domain is there, or somebody else has ended it."""
    EXCHANGED = "exchanged"
    """The former domain's disks are kept, and it is about to be ended; a repair sees if it was."""
    SWAPPED = "swapped"
    """The former domain is gone and its disks are kept: only forward."""
    RESTORED = "restored"
    """The disks are those of the snapshot."""
    STARTED = "started"
    """The domain has been started on them; what is left is bookkeeping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalDisk:
    """A disk of a rollback, by which whoever goes on with it finds its volumes again."""

    vg: str
    vg_uuid: VgUuid
    """Empty where an older snapvm wrote it down."""
    name: str
    """The disk's own."""
    is_thick: bool
    """It is written in place, and not exchanged for a clone."""
    snapshot_uuid: LvUuid
    current: LvUuid
    """Of what had the disk's name before."""
    clone_name: str
    undo_name: str
    user_tags: tuple[str, ...]
    not_at_boot: bool
    """LVM does not activate the disk by itself."""
    is_skipped: bool
    """LVM activates the disk only when told so explicitly each time."""

    def __str__(self) -> str:
        return f"{self.vg}/{self.name}"

    @classmethod
    def of_plan(cls, disk: SwapDisk) -> JournalDisk:
        """Return what is to be written down of a disk that goes back."""
        return cls(
            vg=disk.current.vg,
            vg_uuid=disk.current.vg_uuid,
            name=disk.current.lv,
            is_thick=disk.kind is VolumeKind.THICK,
            snapshot_uuid=disk.snapshot.uuid,
            current=disk.current.uuid,
            clone_name=disk.clone_name,
            undo_name=disk.undo_name,
            user_tags=disk.user_tags,
            not_at_boot=disk.not_at_boot,
            is_skipped=disk.is_skipped,
        )

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> JournalDisk:
        """Read it from plain JSON values; raise ``Wrong``."""
        # An older snapvm that does not say which kind it is knew thin ones only.
        is_thick = "kind" in said and one_of(said, "kind", VolumeKind) is VolumeKind.THICK
        return cls(
            vg=lvm_name(said, "vg"),
            vg_uuid=vg_uuid(said, "vg_uuid"),
            name=lvm_name(said, "disk"),
            is_thick=is_thick,
            snapshot_uuid=lv_uuid(said, "snapshot"),
            current=lv_uuid(said, "current"),
            clone_name=lvm_name(said, "clone"),
            undo_name=lvm_name(said, "undo"),
            user_tags=texts(said, "tags"),
            not_at_boot=optional(said, "not_at_boot", default=False),
            is_skipped=optional(said, "skipped", default=False),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        kind = VolumeKind.THICK if self.is_thick else VolumeKind.THIN
        return {
            "vg": self.vg,
            "vg_uuid": self.vg_uuid,
            "disk": self.name,
            "kind": kind.value,
            "snapshot": self.snapshot_uuid,
            "current": self.current,
            "clone": self.clone_name,
            "undo": self.undo_name,
            "tags": list(self.user_tags),
            "not_at_boot": self.not_at_boot,
            "skipped": self.is_skipped,
        }

    @property
    def former(self) -> LvRef:
        """What had the disk's name before, under that name."""
        return self._in_group(self.name, self.current)

    @property
    def snapshot(self) -> LvRef:
        """What it goes back to; nobody asks what name that has."""
        return self._in_group("", self.snapshot_uuid)

    def _in_group(self, name: str, uuid: LvUuid) -> LvRef:
        return LvRef(vg=self.vg, lv=name, uuid=uuid, vg_uuid=self.vg_uuid)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackJournal:
    """What is written down of a rollback: what it takes to finish it, or to take it back."""

    phase: Phase
    record: SnapshotId
    """What the domain goes back to."""
    set: str
    """By which LVM's tags name what it makes and what it keeps."""
    run: DomainRun
    """The one that is to end."""
    paused: bool
    """The domain is not to run when it is back."""
    set_time: bool
    """The clock of its guest is to be set then."""
    was_running: bool
    """The domain did, before it was to stand still."""
    definition: str
    """The domain's own, should its hypervisor forget it; empty where an older snapvm wrote it."""
    disks: tuple[JournalDisk, ...]
    undo_record: dict[str, Any]
    """As it is written down; see ``undo``."""
    written: tuple[int | None, ...] | None = None
    """How much had been written to each disk when this phase began, in sectors: None for a disk of
    which the kernel did not say it.  In the first phase there are no counts at all."""
    is_spoiled: bool = False
    """The domain has run on clones while thick disks were not written back."""
    left_off: bool | None = None
    """Whether a boot of the host is why the domain is not to be started; None: it is to be."""

    @classmethod
    def of_plan(
        cls, plan: RollbackPlan, undo: Record, *, paused: bool, set_time: bool
    ) -> RollbackJournal:
        """Return what is to be written down of a rollback before its first effect."""
        return cls(
            phase=Phase.PREPARE,
            record=plan.record.id,
            set=plan.set,
            run=DomainRun.of(plan.domain),
            paused=paused,
            set_time=set_time,
            was_running=plan.domain.state is DomainState.RUNNING,
            definition=plan.domain.definition,
            disks=tuple(map(JournalDisk.of_plan, plan.disks)),
            undo_record=recordfile.as_dict(undo),
        )

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> RollbackJournal:
        """Read it from plain JSON values; raise ``Wrong``.

        What is written in it becomes words of LVM's command lines.
        """
        disks = each(said, "disks", JournalDisk.from_dict)
        return cls(
            phase=one_of(said, "phase", Phase),
            record=SnapshotId(required(said, "record", str)),
            set=set_name(said, "set"),
            run=DomainRun.from_dict(said),
            paused=required(said, "paused", bool),
            set_time=optional(said, "set_time", default=True),
            was_running=required(said, "was_running", bool),
            definition=optional(said, "definition", default=""),
            disks=disks,
            undo_record=required(said, "undo_record", dict),
            written=_counts(said, len(disks)) if _WRITTEN in said else None,
            is_spoiled=optional(said, _SPOILED, default=False),
            left_off=required(said, _LEFT_OFF, bool) if _LEFT_OFF in said else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "kind": "rollback",
            "phase": self.phase.value,
            "record": self.record,
            "set": self.set,
            **self.run.as_dict(),
            "paused": self.paused,
            "set_time": self.set_time,
            "was_running": self.was_running,
            "definition": self.definition,
            "disks": [disk.as_dict() for disk in self.disks],
            "undo_record": self.undo_record,
            **({} if self.written is None else {_WRITTEN: list(self.written)}),
            **({_SPOILED: True} if self.is_spoiled else {}),
            **({} if self.left_off is None else {_LEFT_OFF: self.left_off}),
        }

    @property
    def has_thick(self) -> bool:
        """Whether disks are written in place."""
        return any(disk.is_thick for disk in self.disks)

    def undo(self) -> Record:
        """Return the record that is to name what was current; raise ``RecordUnusable``.

        Only whoever needs it hears of a damaged one: a domain that stands still runs by then.
        """
        return recordfile.from_dict(self.undo_record, "the journal of a rollback")

    def reached(self, phase: Phase, lvm: Lvm) -> RollbackJournal:
        """Return what it says in another phase: also how much was written to the disks by then."""
        counts = tuple(lvm.written_sectors(disk.former.path) for disk in self.disks)
        return replace(self, phase=phase, written=counts)

    def written_since(self, lvm: Lvm, report: Report) -> tuple[JournalDisk, ...]:
        """Return the disks that somebody has written to since it was written; not after a boot.

        While it has no counts yet, only clones can be judged: nobody writes to them before a domain
        is started on them.  A disk whose device was taken away may have been written to.
        """
        if self.run.is_before_boot:
            return ()
        counts = self.written
        if counts is None:
            counts = tuple(None if disk.is_thick else 0 for disk in self.disks)
        since = []
        for disk, then in zip(self.disks, counts, strict=True):
            # Not by its name, which udev may have left where it led before.
            volume = report.lv_from_name(disk.vg, disk.name)
            number = None if volume is None else volume.device
            now = None if number is None else lvm.written_sectors(number)
            if then is not None and now != then:
                since.append(disk)
        return tuple(since)


def write(host: Host, uuid: DomainUuid, journal: RollbackJournal) -> None:
    """Write down, durably, how far the rollback of a domain is; raise ``StorageFailed``."""
    host.catalog.write_journal(uuid, Work.ROLLBACK, journal.as_dict())


def _counts(said: Mapping[str, Any], disks: int) -> tuple[int | None, ...]:
    counts = required(said, _WRITTEN, list)
    if len(counts) != disks or not all(n is None or type(n) is int for n in counts):
        raise Wrong(f"{_WRITTEN!r} does not say how much was written to each disk")
    return tuple(counts)
