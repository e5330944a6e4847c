"""Every deliberate failure of snapvm: its data, its words, its hint and its exit status.

A failure is raised where it is known, with the data it is about; it is worded here and nowhere
else, and only ``snapvm.cli.app`` prints it.  The tree follows the exit statuses::

    SnapvmError
     +- NotFound       3   UnknownDomain UnknownSnapshot AmbiguousSnapshot
     +- Refused        4   nothing has been touched
     +- Locked         5   another snapvm works on the domain
     +- Failed         6   everything has been put back
     +- RepairNeeded   7   something is left, which the next command repairs
     +- NeedsAttention 8   the domain could not be resumed or started
     +- Interrupted  130   by the user or a signal; everything has been put back

Failures of one subject live beside each other; the page tables' and image formats' are below
``BadImage``, LVM's below ``CommandFailed``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar


class ExitStatus(IntEnum):
    """What ``snapvm`` tells its caller; the man page's EXIT STATUS is made from this."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    LOCKED = 5
    FAILED = 6
    REPAIR_NEEDED = 7
    ATTENTION = 8
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One sentence for people."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitStatus.DONE: "Done, all of it.",
    ExitStatus.BUG: "A bug in snapvm; please report what it printed.",
    ExitStatus.USAGE: "The command line or a setting is wrong.",
    ExitStatus.NOT_FOUND: "There is no such domain or snapshot.",
    ExitStatus.REFUSED: "Refused before anything was touched.",
    ExitStatus.LOCKED: "Another snapvm is working on this domain.",
    ExitStatus.FAILED: "Failed; everything was put back as it was.",
    ExitStatus.REPAIR_NEEDED: "Failed; what is left over the next command on the domain mends.",
    ExitStatus.ATTENTION: "The domain could not be resumed or started and needs attention.",
    ExitStatus.INTERRUPTED: "Interrupted; everything was put back as it was.",
}


class SnapvmError(Exception):
    """Base of every failure snapvm expects; subclasses are dataclasses of what they are about."""

    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILED

    def message(self) -> str:
        """Say what is wrong and why, in one sentence without a final full stop."""
        raise NotImplementedError

    def hint(self) -> str:
        """Say what to do or type next; empty when there is nothing sensible to say."""
        return ""

    def details(self) -> Mapping[str, Any]:
        """Return what the answer for programs has beside the failure itself."""
        return {}

    def __str__(self) -> str:
        return self.message()


def _say(text: str) -> str:
    """Quote a name that came from outside, so that control characters cannot reach a terminal."""
    return repr(text) if not text.isprintable() or " " in text or not text else text


# --- 2: usage ---------------------------------------------------------------------------------


@dataclass(eq=False)
class BadName(SnapvmError):
    """A snapshot name or reference that cannot be one."""

    exit_status = ExitStatus.USAGE
    text: str
    why: str

    def message(self) -> str:
        return f"{self.text!r} cannot be used: {self.why}"

    def hint(self) -> str:
        return "a snapshot is written DOM@ID, as `snapvm list` shows it"


@dataclass(eq=False)
class BadSetting(SnapvmError):
    """A settings file or SNAPVM_* variable that cannot be used."""

    exit_status = ExitStatus.USAGE
    where: str
    why: str

    def message(self) -> str:
        return f"the setting in {self.where} cannot be used: {self.why}"


# --- 3: not found -----------------------------------------------------------------------------


@dataclass(eq=False)
class UnknownDomain(SnapvmError):
    """No hypervisor of this host, and no record, knows a domain of this name."""

    exit_status = ExitStatus.NOT_FOUND
    domain: str

    def message(self) -> str:
        return f"there is no domain named {_say(self.domain)}"

    def hint(self) -> str:
        return "`virsh list --all` or `xl list` shows the domains of this host"


@dataclass(eq=False)
class UnknownSnapshot(SnapvmError):
    """The domain has no snapshot of this id, or none at all."""

    exit_status = ExitStatus.NOT_FOUND
    domain: str
    id: str

    def message(self) -> str:
        if not self.id:
            return f"there is no snapshot of {_say(self.domain)}"
        return f"there is no snapshot {_say(self.domain)}@{_say(self.id)}"

    def hint(self) -> str:
        return "`snapvm list` shows the snapshots there are"


@dataclass(eq=False)
class NothingToUndo(SnapvmError):
    """The domain has no record of what was current before a rollback."""

    exit_status = ExitStatus.NOT_FOUND
    domain: str

    def message(self) -> str:
        return f"there is nothing to undo of {_say(self.domain)}: no rollback left its disks"

    def hint(self) -> str:
        return "`snapvm list` shows the snapshots there are; those of kind undo are meant"


@dataclass(eq=False)
class AmbiguousSnapshot(SnapvmError):
    """A prefix that several ids begin with."""

    exit_status = ExitStatus.NOT_FOUND
    domain: str
    prefix: str
    ids: tuple[str, ...]

    def message(self) -> str:
        return f"{_say(self.domain)}@{self.prefix} could be any of {', '.join(self.ids[:5])}"

    def hint(self) -> str:
        return "type more of the id"


# --- 4: refused, nothing touched --------------------------------------------------------------


class Refused(SnapvmError):
    """Base of what is refused before the first effect."""

    exit_status = ExitStatus.REFUSED


@dataclass(eq=False)
class HostLacks(Refused):
    """A program, library or privilege this host would need."""

    what: str
    remedy: str

    def message(self) -> str:
        return f"this host lacks {self.what}"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class DiskRefused(Refused):
    """A disk of the domain that cannot be captured together with the others."""

    domain: str
    target: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"disk {self.target} of {_say(self.domain)} cannot be captured: {self.why}"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class DomainRefused(Refused):
    """The domain as it is now cannot be captured or rolled back."""

    domain: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"domain {_say(self.domain)} is refused: {self.why}"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class VolumeRefused(Refused):
    """A logical volume or thin pool in a state that must not be built upon."""

    volume: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"volume {self.volume} is refused: {self.why}"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class NoSpace(Refused):
    """Less room than is needed, known before anything was touched."""

    where: str
    needed: str
    free: str
    remedy: str = "make room (`snapvm delete`, `lvextend`) or choose another place"

    def message(self) -> str:
        return f"not enough room in {self.where}: {self.needed} needed, {self.free} free"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class SnapshotExists(Refused):
    """The name asked for is taken."""

    domain: str
    id: str

    def message(self) -> str:
        return f"{_say(self.domain)}@{self.id} exists already"

    def hint(self) -> str:
        return "choose another --name, or delete that one first"


@dataclass(eq=False)
class RecordUnusable(Refused):
    """A record that is damaged, from a newer snapvm, or whose parts are gone."""

    path: str
    why: str

    def message(self) -> str:
        return f"the record {_say(self.path)} cannot be used: {self.why}"

    def hint(self) -> str:
        return "other snapshots are not affected; `snapvm list` shows them"


@dataclass(eq=False)
class NotConfirmed(Refused):
    """The user said no, or could not be asked."""

    what: str

    def message(self) -> str:
        return f"{self.what}: not confirmed, nothing was done"

    def hint(self) -> str:
        return "answer yes, or give --yes in a script"


@dataclass(eq=False)
class BadImage(Refused):
    """A memory image or stream that is not what its format demands, with the place."""

    path: str
    offset_bytes: int
    why: str

    def message(self) -> str:
        return f"{_say(self.path)}: at byte {self.offset_bytes}: {self.why}"


@dataclass(eq=False)
class UnreadableFile(Refused):
    """A file that the user named and that cannot be read."""

    path: str
    why: str

    def message(self) -> str:
        return f"{_say(self.path)}: {self.why}"

    def hint(self) -> str:
        return "name a snapshot, DOM@ID, or the path of a memory image"


@dataclass(eq=False)
class Unsound(Refused):
    """A memory image that would not restore as the domain it was taken of."""

    path: str
    problems: int
    first: str
    report: Mapping[str, Any]
    """Everything found, as ``snapvm verify --json`` tells it."""

    def message(self) -> str:
        count = "a problem" if self.problems == 1 else f"{self.problems} problems, the first"
        return f"{_say(self.path)} is not sound: {count}: {self.first}"

    def details(self) -> Mapping[str, Any]:
        return self.report


@dataclass(eq=False)
class NotReady(Refused):
    """A domain that a `take` would refuse, as `doctor` found."""

    domain: str
    count: int
    diagnosis: Mapping[str, Any]

    def message(self) -> str:
        what = "a thing stands" if self.count == 1 else f"{self.count} things stand"
        return f"{what} in the way of a take of {_say(self.domain)}"

    def details(self) -> Mapping[str, Any]:
        return self.diagnosis


@dataclass(eq=False)
class Found(Refused):
    """What `check` found not to be in order."""

    count: int
    findings: tuple[Mapping[str, str], ...]

    def message(self) -> str:
        return f"{self.count} thing{'' if self.count == 1 else 's'} not in order"

    def details(self) -> Mapping[str, Any]:
        return {"findings": list(self.findings)}


# --- 5: locked --------------------------------------------------------------------------------


@dataclass(eq=False)
class Locked(SnapvmError):
    """Another snapvm holds the domain's lock."""

    exit_status = ExitStatus.LOCKED
    domain: str
    holder: str

    def message(self) -> str:
        return f"another snapvm is working on {_say(self.domain)} ({self.holder})"

    def hint(self) -> str:
        return "wait for it to end, or give --wait SECONDS"


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
        return f"the memory of {_say(self.domain)} could not be captured: {self.why}"


@dataclass(eq=False)
class NotFrozen(SnapvmError):
    """The guest's agent did not freeze its file systems."""

    domain: str
    why: str

    def message(self) -> str:
        return f"the file systems of {_say(self.domain)} could not be frozen: {self.why}"

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
        return f"the clock of {_say(self.domain)} was not set: {self.why}"

    def hint(self) -> str:
        return f"`virsh domtime {shlex.quote(self.domain)} --sync` sets it"


@dataclass(eq=False)
class WindowBroken(SnapvmError):
    """Somebody else ran, stopped or changed the domain while it had to stand still."""

    domain: str
    what: str

    def message(self) -> str:
        return f"{_say(self.domain)} did not stand still while it was captured: {self.what}"

    def hint(self) -> str:
        return "the set was thrown away; take again when nobody else works on the domain"


@dataclass(eq=False)
class RollbackFailed(SnapvmError):
    """A rollback that failed before its point of no return."""

    domain: str
    id: str
    why: str

    def message(self) -> str:
        return f"{_say(self.domain)} could not be rolled back to {self.id}: {self.why}"

    def hint(self) -> str:
        return "nothing was lost: the domain and its disks are as they were"


@dataclass(eq=False)
class StorageFailed(SnapvmError):
    """The state folder could not be written or read."""

    path: str
    why: str

    def message(self) -> str:
        return f"{_say(self.path)}: {self.why}"


# --- 7, 8, 130 --------------------------------------------------------------------------------


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
        return f"the journal {_say(self.path)} is of no use: {self.why}"

    def hint(self) -> str:
        return (
            "let the snapvm that wrote it repair it; if it is damaged, see that the domain runs, "
            "move it out of the state folder, then: snapvm check --fix"
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
        return f"{_say(self.domain)} is paused and could not be resumed: {self.why}"

    def hint(self) -> str:
        return f"`{self.command} {shlex.quote(self.domain)}` makes it run"


@dataclass(eq=False)
class StillFrozen(SnapvmError):
    """The guest's file systems could not be thawed: it runs, and whoever writes in it waits."""

    exit_status = ExitStatus.ATTENTION
    domain: str
    why: str

    def message(self) -> str:
        return f"the file systems of {_say(self.domain)} could not be thawed: {self.why}"

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
        return f"{_say(self.domain)}@{self.id} is whole, but the domain was not stopped: {self.why}"

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
        disks = f"the disks of {_say(self.domain)} are those of {self.id}"
        return f"{disks}, but it did not start: {self.why}"

    def hint(self) -> str:
        return self.remedy


@dataclass(eq=False)
class Interrupted(SnapvmError):
    """Ctrl-C or SIGTERM; everything was put back."""

    exit_status = ExitStatus.INTERRUPTED
    signal: str

    def message(self) -> str:
        return f"interrupted by {self.signal}; everything was put back as it was"
