"""Failures on the way, after which everything was put back: exit status 6.

The last two are the exception: several snapshots were to be deleted, and those already deleted
cannot be put back.  Failures that somebody has to do something about are in ``attention``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from snapvm import storagehints
from snapvm.errors import ExitStatus, Interrupted, SnapvmError, quoted, some, typed


@contextmanager
def saying(what_became: str) -> Iterator[None]:
    """Have a failure of the block say what became of the work, if it has no other hint.

    Its exit status tells that to programs; a person read only which lvm had failed.
    """
    try:
        yield
    except SnapvmError as error:
        if error.exit_status is ExitStatus.FAILED and not error.hint():
            error.remedy = what_became
        raise


_ENDS_CHARACTERS = 70
"""How much of each end of a long command a message shows."""


def _shown(argv: tuple[str, ...]) -> str:
    """Return a command as it is typed; of a long one both ends, and all of it is in the log.

    One of LVM's reports has ten lines, and what is wrong stood behind them.
    """
    text = shlex.join(argv)
    if len(text) <= 2 * _ENDS_CHARACTERS:
        return text
    return f"{text[:_ENDS_CHARACTERS]} ... {text[-_ENDS_CHARACTERS:]}"


@dataclass(eq=False)
class CommandFailed(SnapvmError):
    """A program that ended with a status it should not have."""

    argv: tuple[str, ...]
    status: int
    stderr: str
    stdout: str = ""

    def message(self) -> str:
        said = " ".join(self.stderr.split())[:600] or "it said nothing"
        return f"`{_shown(self.argv)}` ended with status {self.status}: {said}"


@dataclass(eq=False)
class CommandTimedOut(SnapvmError):
    """A program that did not end in time; where killing it would be unsafe it still runs."""

    argv: tuple[str, ...]
    seconds: float

    def message(self) -> str:
        return f"`{_shown(self.argv)}` did not end within {self.seconds:g} s"


@dataclass(eq=False)
class StillAtWork(SnapvmError):
    """An lvm command that took too long: it is never killed, and may still make its change."""

    group: str

    def message(self) -> str:
        return f"an lvm command is still at work in {self.group}, and may still make its change"


@dataclass(eq=False)
class SnapshotFailed(SnapvmError):
    """A disk whose LVM snapshot could not be made in the window."""

    remedy = "nothing was kept, the domain is as it was; fix the cause, then take a snapshot again"
    target: str
    volume: str
    why: str

    def message(self) -> str:
        return f"no snapshot of disk {self.target} ({self.volume}): {self.why}"


@dataclass(eq=False)
class LackedMeanwhile(SnapvmError):
    """The host lacked something while the domain stood still, where that is no refusal any more."""

    domain: str
    why: str
    way_out: str

    def message(self) -> str:
        return f"{quoted(self.domain)} could not be captured: {self.why}"

    def hint(self) -> str:
        return f"nothing was kept, the domain is as it was; {self.way_out}"


@dataclass(eq=False)
class HypervisorFailed(SnapvmError):
    """A request that the hypervisor refused, where no more is known about it."""

    said: str

    def message(self) -> str:
        return f"the hypervisor refused: {self.said}"


@dataclass(eq=False)
class DomainFailed(SnapvmError):
    """What a hypervisor could not do with a domain; ``deed`` is a participle such as "resumed"."""

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
    """The file system did not take the memory image, or not in time."""

    path: str

    @classmethod
    def because(cls, error: OSError, domain: str, folder: Path) -> Self:
        """Return the failure for a file operation in the folder of a draft."""
        return cls(domain=domain, why=error.strerror or str(error), path=str(folder.parent))

    def message(self) -> str:
        return f"the memory of {quoted(self.domain)} could not be written: {self.why}"

    def hint(self) -> str:
        again = f"check the file system of {quoted(self.path)}, then take the snapshot again"
        return storagehints.of(self.why, self.path) or again


@dataclass(eq=False)
class NotFrozen(SnapvmError):
    """The guest's agent did not freeze its file systems."""

    remedy = (
        "check qemu-guest-agent in the guest, or leave --quiesce out: memory and disks fit "
        "together without it"
    )
    domain: str
    why: str

    def message(self) -> str:
        return f"the file systems of {quoted(self.domain)} could not be frozen: {self.why}"


@dataclass(eq=False)
class ClockNotSet(SnapvmError):
    """The clock of a guest stayed at the instant of its snapshot."""

    domain: str
    why: str

    def message(self) -> str:
        return f"the clock of {quoted(self.domain)} was not set: {self.why}"

    def hint(self) -> str:
        return f"`virsh domtime {shlex.quote(self.domain)} --sync` sets it"


@dataclass(eq=False)
class WindowBroken(SnapvmError):
    """Somebody else ran, stopped or changed the domain while it had to stand still."""

    remedy = "nothing was kept; take the snapshot again when nobody else works on the domain"
    domain: str
    what: str

    def message(self) -> str:
        return f"{quoted(self.domain)} did not stand still while it was captured: {self.what}"


@dataclass(eq=False)
class PausedMeanwhile(WindowBroken):
    """Somebody paused the running domain just before snapvm did; it stays paused."""

    what: str = "it was paused"

    def message(self) -> str:
        who = "was paused by someone else before it was captured, and stays paused"
        return f"{quoted(self.domain)} {who}"

    def hint(self) -> str:
        doctor = typed("doctor", self.domain)
        return f"nothing was kept; `{doctor}` says whether it can be captured while it is paused"


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

    def hint(self) -> str:
        path = Path(self.path)
        if not path.is_absolute():
            return self.remedy
        folder = path.parent
        if folder.name.startswith("."):  # of what was being made, and is gone by now
            folder = folder.parent
        return storagehints.of(self.why, str(folder)) or self.remedy


@dataclass(eq=False)
class DiskMissing(SnapvmError):
    """A disk of a killed rollback that LVM does not report now."""

    volume: str
    uuid: str
    group_now: str = ""
    """The present name of its volume group, where somebody has renamed that."""
    journal: str = ".rollback.json"
    """The path of the rollback's journal, as far as that is known."""

    def message(self) -> str:
        return f"LVM does not report {self.volume} (uuid {self.uuid}), which was the disk"

    def hint(self) -> str:
        if self.group_now:
            return f"vgrename {self.group_now} {self.volume.partition('/')[0]}"
        return (
            "is its volume group there, under its own name? see `vgs` and `pvs`; if it is lost for "
            f"good, so is this rollback: move its journal {shlex.quote(self.journal)} out of the "
            "state folder"
        )


@dataclass(eq=False)
class OldJournal(SnapvmError):
    """A journal of a rollback that the disks do not fit any more: they are newer."""

    remedy = (
        "move that file out of the state folder, and check that the domain is as it should be; "
        "if it is not, roll back once more"
    )
    volume: str
    why: str

    def message(self) -> str:
        is_old = "the journal of the rollback is older than that, as if restored from a backup"
        return f"disk {quoted(self.volume)}: {self.why}; {is_old}"


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
    """One of several snapshots could not be deleted, and those before it are gone for good."""

    because: SnapvmError
    deleted: tuple[str, ...]
    untouched: tuple[str, ...]
    signal: str = ""
    """The signal that came as well.  The failure has the say, for somebody has to act on it."""

    def __post_init__(self) -> None:
        # A refusal (4) or a lock (5) says that nothing was touched, but here something was.
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
