"""What failed on the way: put back (exit status 6), to be repaired (7), to be looked after (8)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from snapvm.errors import ExitStatus, SnapvmError, quoted

# --- 6: failed, put back ----------------------------------------------------------------------


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

    target: str
    volume: str
    why: str

    def message(self) -> str:
        return f"no snapshot of disk {self.target} ({self.volume}): {self.why}"

    def hint(self) -> str:
        return "the domain runs on and nothing was kept; mend the cause and take again"


@dataclass(eq=False)
class HypervisorFailed(SnapvmError):
    """What a hypervisor said no to, where no more is known about it."""

    said: str

    def message(self) -> str:
        return f"the hypervisor refused: {self.said}"


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

    domain: str
    why: str

    def message(self) -> str:
        return f"the file systems of {quoted(self.domain)} could not be frozen: {self.why}"

    def hint(self) -> str:
        return (
            "look after qemu-guest-agent in the guest, or leave --quiesce out: memory and disks "
            "are of one instant without it"
        )


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

    domain: str
    what: str

    def message(self) -> str:
        return f"{quoted(self.domain)} did not stand still while it was captured: {self.what}"

    def hint(self) -> str:
        return "the set was thrown away; take again when nobody else works on the domain"


@dataclass(eq=False)
class RollbackFailed(SnapvmError):
    """A rollback that failed before its point of no return."""

    domain: str
    id: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.domain)} could not be rolled back to {self.id}: {self.why}"

    def hint(self) -> str:
        return "nothing was lost: the domain and its disks are as they were"


@dataclass(eq=False)
class StorageFailed(SnapvmError):
    """The state folder could not be written or read."""

    path: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.path)}: {self.why}"


# --- 7, 8 --------------------------------------------------------------------------------------


@dataclass(eq=False)
class LeftBehind(SnapvmError):
    """Cleaning up failed in part; what remains is named in the journal."""

    exit_status = ExitStatus.REPAIR_NEEDED
    leftovers: tuple[str, ...]
    why: str

    def message(self) -> str:
        return f"{self.why}; and this could not be cleaned up: {'; '.join(self.leftovers)}"

    def hint(self) -> str:
        return "`snapvm repair` tries again"


@dataclass(eq=False)
class JournalUnusable(SnapvmError):
    """A journal does not say what was under way, so nothing can be finished or undone."""

    exit_status = ExitStatus.REPAIR_NEEDED
    path: str
    why: str

    def message(self) -> str:
        return f"the journal {quoted(self.path)} is of no use: {self.why}"

    def hint(self) -> str:
        return (
            "let the snapvm that wrote it repair it; if it is damaged, see that the domain runs, "
            "move it out of the state folder, and do what `snapvm check` then says of each volume"
        )


@dataclass(eq=False)
class StuckPaused(SnapvmError):
    """The domain could not be made to run again."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    why: str
    command: str = "virsh resume"
    """The hypervisor's own way to do it."""

    def message(self) -> str:
        return f"{quoted(self.domain)} is paused and could not be resumed: {self.why}"

    def hint(self) -> str:
        return f"`{self.command} {shlex.quote(self.domain)}` makes it run"


@dataclass(eq=False)
class StillFrozen(SnapvmError):
    """The guest's file systems could not be thawed: it runs, and whoever writes in it waits."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    why: str

    def message(self) -> str:
        return f"the file systems of {quoted(self.domain)} could not be thawed: {self.why}"

    def hint(self) -> str:
        return f"`virsh domfsthaw {shlex.quote(self.domain)}` thaws them"


@dataclass(eq=False)
class NotStopped(SnapvmError):
    """The snapshot is whole, but the domain that was to end with it did not."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str
    why: str

    def message(self) -> str:
        return (
            f"{quoted(self.domain)}@{self.id} is whole, but the domain was not stopped: {self.why}"
        )

    def hint(self) -> str:
        return "it may have changed since: stop it, or delete the snapshot and let it run on"


@dataclass(eq=False)
class NotStarted(SnapvmError):
    """The disks are rolled back but the domain could not be started on them."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str
    why: str
    remedy: str

    def message(self) -> str:
        disks = f"the disks of {quoted(self.domain)} are those of {self.id}"
        return f"{disks}, but it did not start: {self.why}"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class LeftOff(SnapvmError):
    """The host was booted in the middle of a rollback; what is on the disks may be newer now."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str

    def message(self) -> str:
        when = f"the host was booted in the middle of the rollback of {quoted(self.domain)}"
        disks = f"its disks are those of {self.id}, or what it has made of them since"
        return f"{when}: {disks}, so it is left off"

    def hint(self) -> str:
        again = shlex.quote(f"{self.domain}@{self.id}")
        return f"start it as it is, or have memory and disks together: snapvm rollback {again}"


@dataclass(eq=False)
class HalfBack(SnapvmError):
    """The domain is ended, and its disks are not yet, or not all, those it was to go back to."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str
    why: str

    def message(self) -> str:
        half = f"{quoted(self.domain)} is off and on the way back to {self.id}"
        return f"{half}, its disks neither the one nor the other: {self.why}"

    def hint(self) -> str:
        return f"do not start it; mend the cause, then: snapvm repair {shlex.quote(self.domain)}"


@dataclass(eq=False)
class StartedTooSoon(SnapvmError):
    """Somebody started the domain in the middle of a rollback that was killed."""

    exit_status = ExitStatus.ATTENTION
    domain: str

    def message(self) -> str:
        when = "was started in the middle of a rollback that was killed"
        return f"{quoted(self.domain)} {when}: its disks are not of one time, and it spoils them"

    def hint(self) -> str:
        return f"shut it off, then: snapvm repair {shlex.quote(self.domain)}"
