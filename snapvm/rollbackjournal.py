"""The journal of a rollback: how far it is, and what repair needs to finish it or take it back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from snapvm import naming, recordfile
from snapvm.domainrun import DomainRun
from snapvm.jsonvalues import lv_uuid, lvm_name, vg_uuid
from snapvm.lvm.report import Report
from snapvm.lvm.volumes import Lvm
from snapvm.model import DomainState, LvRef, LvUuid, Record, VgUuid, VolumeKind
from snapvm.planning import RollbackPlan

_WRITTEN = "written"


class Phase(StrEnum):
    """How far a rollback is, as its journal says."""

    PREPARE = "prepare"
    """It is taken back: the former domain is there, or somebody else has ended it."""
    EXCHANGED = "exchanged"
    """The former domain is about to be ended, and its disks are kept: whether it was, is seen."""
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


def has_thick(disks: Iterable[JournalDisk]) -> bool:
    """Tell whether a rollback writes disks in place."""
    return any(disk.is_thick for disk in disks)


def check(written: dict[str, Any]) -> None:
    """Raise ``ValueError``, ``KeyError`` or ``TypeError`` for a journal LVM must not be told of.

    What is written in it becomes words of LVM's command lines.
    """
    if not naming.is_set(written["set"]):
        raise ValueError(f"{written['set']!r} names no set")
    disks_of(written)


def disks_of(written: dict[str, Any]) -> tuple[JournalDisk, ...]:
    """Return the disks of a journal; raises as ``check`` does."""
    return tuple(_disk(disk) for disk in written["disks"])


def _disk(written: dict[str, Any]) -> JournalDisk:
    return JournalDisk(
        vg=lvm_name(written, "vg"),
        vg_uuid=vg_uuid(written, "vg_uuid"),
        name=lvm_name(written, "disk"),
        is_thick=written.get("kind") == VolumeKind.THICK.value,
        snapshot_uuid=lv_uuid(written, "snapshot"),
        current=lv_uuid(written, "current"),
        clone_name=lvm_name(written, "clone"),
        undo_name=lvm_name(written, "undo"),
        user_tags=tuple(written["tags"]),
        not_at_boot=bool(written.get("not_at_boot")),
        is_skipped=bool(written.get("skipped")),
    )


def reached(written: dict[str, Any], phase: Phase, lvm: Lvm) -> dict[str, Any]:
    """Return a journal of how far a rollback is, and how much was written to its disks by then."""
    counts = [lvm.written_sectors(disk.former.path) for disk in disks_of(written)]
    return {**written, "phase": phase.value, _WRITTEN: counts}


def written_since(journal: dict[str, Any], lvm: Lvm, report: Report) -> tuple[JournalDisk, ...]:
    """Return the disks that somebody has written to since a journal was; not after a boot.

    Before the exchange is written down that can be said of the clones alone, which nobody writes to
    before a domain is started on them.  One whose device was taken away may have been written to.
    """
    if DomainRun.from_dict(journal).is_before_boot:
        return ()
    disks = disks_of(journal)
    counts = journal.get(_WRITTEN, [None if disk.is_thick else 0 for disk in disks])
    since = []
    for disk, then in zip(disks, counts, strict=True):
        # Not by its name, which udev may have left where it led before.
        volume = report.lv_from_name(disk.vg, disk.name)
        number = None if volume is None else volume.device
        now = None if number is None else lvm.written_sectors(number)
        if then is not None and now != then:
            since.append(disk)
    return tuple(since)


def undo_record(written: dict[str, Any]) -> Record:
    """Return the record that is to name what was current; raise ``RecordUnusable``."""
    return recordfile.from_dict(written["undo_record"], "the journal of a rollback")


def begun(plan: RollbackPlan, undo: Record, *, paused: bool, set_time: bool) -> dict[str, Any]:
    """Return what repair needs to finish a rollback or to take it back."""
    return {
        "kind": "rollback",
        "phase": Phase.PREPARE.value,
        "record": plan.record.id,
        "set": plan.set,
        **DomainRun.of(plan.domain).as_dict(),
        "paused": paused,
        "set_time": set_time,
        "was_running": plan.domain.state is DomainState.RUNNING,
        "definition": plan.domain.definition,
        "disks": [
            {
                "vg": disk.current.vg,
                "vg_uuid": disk.current.vg_uuid,
                "disk": disk.current.lv,
                "kind": disk.kind.value,
                "snapshot": disk.snapshot.uuid,
                "current": disk.current.uuid,
                "clone": disk.clone_name,
                "undo": disk.undo_name,
                "tags": list(disk.user_tags),
                "not_at_boot": disk.not_at_boot,
                "skipped": disk.is_skipped,
            }
            for disk in plan.disks
        ],
        "undo_record": recordfile.as_dict(undo),
    }
