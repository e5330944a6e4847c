"""What failed on the way, and was put back (exit status 6); the rest is in ``attention``.

And what stopped several deletes when some were done, which nothing puts back.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from snapvm.errors import ExitStatus, Interrupted, SnapvmError, quoted, some


@dataclass(eq=False)
class CommandFailed(SnapvmError):
    """A program that ended with a status it should not have."""

    argv: tuple[str, ...]
    status: int
    stderr: str

    def message(self) -> str:
        said = " ".join(self.stderr.split())[:600] or "it said nothing"
        return f"`{shlex.join(self.argv)}` ended with status {self.status}: {said}"


@dataclass(eq=False)
class CommandTimedOut(SnapvmError):
    """A program that did not end within its time; it was left alone when killing is unsafe."""

    argv: tuple[str, ...]
    seconds: float

    def message(self) -> str:
        return f"`{shlex.join(self.argv)}` did not end within {self.seconds:g} s"


@dataclass(eq=False)
class StillAtWork(SnapvmError):
    """An lvm that was given up and goes on: it is never killed, and may do what it was told."""

    group: str

    def message(self) -> str:
        return f"an lvm is still at work in {self.group}, and may make what it was told to"


@dataclass(eq=False)
class SnapshotFailed(SnapvmError):
    """A disk whose LVM snapshot could not be made in the window."""

    remedy = "the domain runs on and nothing was kept; mend the cause and take again"
    target: str
    volume: str
    why: str

    def message(self) -> str:
        return f"no snapshot of disk {self.target} ({self.volume}): {self.why}"


@dataclass(eq=False)
class HypervisorFailed(SnapvmError):
    """What a hypervisor said no to, where no more is known about it."""

    said: str

    def message(self) -> str:
        return f"the hypervisor refused: {self.said}"


@dataclass(eq=False)
class DomainFailed(SnapvmError):
    """What a hypervisor could not do with a domain; ``deed`` is what it should have become."""

    domain: str
    deed: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.domain)} could not be {self.deed}: {self.why}"


@dataclass(eq=False)
class CaptureFailed(SnapvmError):
    """The hypervisor could not write the memory image."""

    domain: str
    why: str

    def message(self) -> str:
        return f"the memory of {quoted(self.domain)} could not be captured: {self.why}"


@dataclass(eq=False)
class ImageNotWritten(CaptureFailed):
    """The file system of the memory image does not take it, or not in time."""

    path: str

    @classmethod
    def because(cls, error: OSError, domain: str, folder: Path) -> Self:
        """Tell what a file operation in a draft's folder failed with."""
        return cls(domain=domain, why=error.strerror or str(error), path=str(folder.parent))

    def message(self) -> str:
        return f"the memory of {quoted(self.domain)} could not be written: {self.why}"

    def hint(self) -> str:
        return f"look after the file system of {quoted(self.path)}, then take the snapshot again"


@dataclass(eq=False)
class NotFrozen(SnapvmError):
    """The guest's agent did not freeze its file systems."""

    remedy = (
        "look after qemu-guest-agent in the guest, or leave --quiesce out: memory and disks "
        "are of one instant without it"
    )
    domain: str
    why: str

    def message(self) -> str:
        return f"the file systems of {quoted(self.domain)} could not be frozen: {self.why}"


@dataclass(eq=False)
class ClockNotSet(SnapvmError):
    """The clock in a guest stayed at the instant it was captured."""

    domain: str
    why: str

    def message(self) -> str:
        return f"the clock of {quoted(self.domain)} was not set: {self.why}"

    def hint(self) -> str:
        return f"`virsh domtime {shlex.quote(self.domain)} --sync` sets it"


@dataclass(eq=False)
class WindowBroken(SnapvmError):
    """Somebody else ran, stopped or changed the domain while it had to stand still."""

    remedy = "the set was thrown away; take again when nobody else works on the domain"
    domain: str
    what: str

    def message(self) -> str:
        return f"{quoted(self.domain)} did not stand still while it was captured: {self.what}"


@dataclass(eq=False)
class PausedMeanwhile(WindowBroken):
    """Its owner has paused a domain that ran, before snapvm did; it stays so."""

    remedy = "the set was thrown away; take again: one that is paused can be captured as it is"
    what: str = "it was paused"

    def message(self) -> str:
        return f"{quoted(self.domain)} was paused by somebody before it was captured, and stays so"


@dataclass(eq=False)
class RollbackFailed(SnapvmError):
    """A rollback that failed before its point of no return."""

    remedy = "nothing was lost: the domain and its disks are as they were"
    domain: str
    id: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.domain)} could not be rolled back to {self.id}: {self.why}"


@dataclass(eq=False)
class StorageFailed(SnapvmError):
    """The state folder could not be written or read."""

    path: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.path)}: {self.why}"


@dataclass(eq=False)
class DiskMissing(SnapvmError):
    """A disk of a rollback that was killed, which LVM does not report now."""

    volume: str
    uuid: str
    group_now: str = ""
    """What its volume group is called now, where that has another name."""

    def message(self) -> str:
        return f"LVM does not report {self.volume} (uuid {self.uuid}), which was the disk"

    def hint(self) -> str:
        if self.group_now:
            return f"vgrename {self.group_now} {self.volume.partition('/')[0]}"
        return "is its volume group there, under its own name? see `vgs` and `pvs`"


@dataclass(eq=False)
class DeleteInterrupted(Interrupted):
    """Ctrl-C or SIGTERM among several deletes: some snapshots are gone for good, others not."""

    deleted: tuple[str, ...]
    untouched: tuple[str, ...]

    def message(self) -> str:
        left = self.untouched if self.deleted else ()
        return f"interrupted by {self.signal}: {_deleted(self.deleted, left)}"

    def details(self) -> Mapping[str, Any]:
        return {"deleted": list(self.deleted), "not_touched": list(self.untouched)}


@dataclass(eq=False)
class DeleteStopped(SnapvmError):
    """One of several snapshots could not be deleted when some were gone for good."""

    because: SnapvmError
    deleted: tuple[str, ...]
    untouched: tuple[str, ...]
    signal: str = ""
    """What ended it besides; it is the failure that somebody has to do something about."""

    def __post_init__(self) -> None:
        # No refusal, and no lock to wait for, when something was touched; what asks for more stays.
        self.exit_status = max(ExitStatus.FAILED, self.because.exit_status)

    def message(self) -> str:
        ended = f"interrupted by {self.signal}: " if self.signal else ""
        return f"{self.because.message()}; {ended}{_deleted(self.deleted, self.untouched)}"

    def hint(self) -> str:
        return self.because.hint()

    def details(self) -> Mapping[str, Any]:
        return {
            **self.because.details(),
            "because": type(self.because).__name__,
            "deleted": list(self.deleted),
            "not_touched": list(self.untouched),
        }


def _deleted(deleted: tuple[str, ...], untouched: tuple[str, ...]) -> str:
    gone = f"deleted {some(deleted)}" if deleted else "nothing was deleted"
    return f"{gone}, not touched {some(untouched)}" if untouched else gone
