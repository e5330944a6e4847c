"""Failures that leave something to do: run `snapvm repair` (exit status 7), see to a domain (8)."""

from __future__ import annotations

import errno
import os
import shlex
from dataclasses import dataclass

from snapvm.errors import ExitStatus, SnapvmError, quoted, typed

ROLLBACK_JOURNAL = ".rollback.json"
"""How the path of a rollback's journal ends (``recordfolder.journal_file``)."""


@dataclass(eq=False)
class LeftBehind(SnapvmError):
    """Cleaning up failed in part; the journal names what remains."""

    exit_status = ExitStatus.REPAIR_NEEDED
    leftovers: tuple[str, ...]
    why: str
    remedy: str = "`snapvm repair` tries again"

    def message(self) -> str:
        return f"{self.why}; and this could not be cleaned up: {'; '.join(self.leftovers)}"

    def hint(self) -> str:
        said = " ".join((self.why, *self.leftovers))
        # In the words of whoever met it: Python, or an lvm.
        if any(os.strerror(number) in said for number in (errno.ENOSPC, errno.EDQUOT)):
            return f"make room there first; then {self.remedy}"
        return self.remedy


@dataclass(eq=False)
class NameUnclear(SnapvmError):
    """A file or folder has its new name, but the next boot of the host may find the old one."""

    exit_status = ExitStatus.REPAIR_NEEDED
    remedy = "nothing that belongs to it was removed; fix the file system, then: snapvm repair"
    path: str
    why: str

    def message(self) -> str:
        return (
            f"{quoted(self.path)} has its new name, but perhaps not on the disk, and its former "
            f"name could not be given back: {self.why}"
        )


@dataclass(eq=False)
class JournalUnusable(SnapvmError):
    """A journal does not say what was under way, so nothing can be finished or undone."""

    exit_status = ExitStatus.REPAIR_NEEDED
    path: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"the journal {quoted(self.path)} cannot be used: {self.why}"

    def hint(self) -> str:
        return self.remedy or without_journal(self.path)


def without_journal(path: str) -> str:
    """Say what to do about a journal that cannot be read.

    Disks of a domain that is off in the middle of a rollback may be of two different times.
    """
    begins = "repair with the snapvm that wrote it; if it is damaged, "
    ends = "then do what `snapvm check` says of each volume"
    away = f"move the journal out of the state folder ({shlex.quote(path)})"
    if not path.endswith(ROLLBACK_JOURNAL):
        return f"{begins}make sure that the domain runs, {away}, {ends}"
    off = "if the domain is off, do not start it, but roll back once more"
    return f"{begins}{away}; {off}; {ends}"


@dataclass(eq=False)
class StuckPaused(SnapvmError):
    """The domain could not be made to run again."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    why: str
    command: str = "virsh resume"
    """The hypervisor's own command for it."""

    def message(self) -> str:
        return f"{quoted(self.domain)} is not running, and could not be resumed: {self.why}"

    def hint(self) -> str:
        mending = f"{self.command} {shlex.quote(self.domain)}"
        if self.command.startswith("snapvm "):
            mending = typed(self.command.removeprefix("snapvm "), self.domain)
        return f"`{mending}` makes it run"


@dataclass(eq=False)
class StillFrozen(SnapvmError):
    """The guest's file systems could not be thawed: it runs, but its programs cannot write."""

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
    remedy = (
        "the domain may have changed since: shut it off, or delete the snapshot and let the domain "
        "run on"
    )
    domain: str
    id: str
    why: str
    is_standing: bool = False
    """It could not be made to run again either."""

    def message(self) -> str:
        what = "the domain is paused and" if self.is_standing else "the domain"
        ref = f"{quoted(self.domain)}@{self.id}"
        return f"{ref} is complete, but {what} was not shut off: {self.why}"

    def hint(self) -> str:
        return f"`{typed('repair', self.domain)}` ends it" if self.is_standing else self.remedy


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
        return f"{disks}, but the domain did not start: {self.why}"


@dataclass(eq=False)
class LeftOff(SnapvmError):
    """What is on the disks of a rollback that was killed is newer by now, or may be."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str
    is_booted: bool
    """It is the host that was; else somebody had the domain run."""

    def message(self) -> str:
        what = "the host was rebooted" if self.is_booted else "something has written to its disks"
        when = f"{what} in the middle of the rollback of {quoted(self.domain)}"
        disks = f"its disks are those of {self.id}, perhaps changed since by a run of the domain"
        return f"{when}: {disks}, so it is left off"

    def hint(self) -> str:
        again = typed("rollback", f"{self.domain}@{self.id}")
        return f"start it as it is, or roll back again: {again}"


@dataclass(eq=False)
class HalfBack(SnapvmError):
    """A rollback stopped after it had ended the domain; not all disks are the snapshot's yet."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str
    why: str
    is_sure: bool = True
    """Else it is not known how far the rollback had come."""
    mending: str = "fix the cause"

    def message(self) -> str:
        half = f"{quoted(self.domain)} is off in the middle of a rollback to {self.id}"
        disks = "do not" if self.is_sure else "may not"
        return f"{half}, and its disks {disks} belong together: {self.why}"

    def hint(self) -> str:
        return f"do not start it; {self.mending}, then: {typed('repair', self.domain)}"


@dataclass(eq=False)
class GivenBack(SnapvmError):
    """A rollback that had ended the domain and could not go on; the former disks were put back."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    id: str
    why: str

    def message(self) -> str:
        lost = f"{quoted(self.domain)} can no longer be rolled back to {self.id} ({self.why})"
        return f"{lost}; it is off, and its disks are again what they were before"

    def hint(self) -> str:
        return f"start it, or roll back to another snapshot: {typed('list', self.domain)}"


@dataclass(eq=False)
class StartedTooSoon(SnapvmError):
    """Somebody started the domain in the middle of a rollback that was killed."""

    exit_status = ExitStatus.ATTENTION
    domain: str

    def message(self) -> str:
        when = "was started in the middle of a rollback that was killed"
        return f"{quoted(self.domain)} {when}: it runs on disks that do not belong together"

    def hint(self) -> str:
        return f"shut it off, then: {typed('repair', self.domain)}"
