"""Refusals: failures that are found before anything has been touched, with exit status 4."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from snapvm.errors import ExitStatus, SnapvmError, quoted, some, typed


class Refused(SnapvmError):
    """Base of the failures that come before the first effect."""

    exit_status = ExitStatus.REFUSED


@dataclass(eq=False)
class HostLacks(Refused):
    """A program, library or privilege that snapvm needs and this host does not have."""

    what: str
    remedy: str

    def message(self) -> str:
        return f"this host lacks {self.what}"


@dataclass(eq=False)
class NotAllowed(Refused):
    """A file or folder that a command needs, and that only root may read or make."""

    remedy = "run snapvm as root"
    path: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.path)}: {self.why}"


@dataclass(eq=False)
class DiskRefused(Refused):
    """A disk of the domain that cannot be captured together with the others."""

    domain: str
    target: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"disk {self.target} of {quoted(self.domain)} cannot be captured: {self.why}"


@dataclass(eq=False)
class DomainRefused(Refused):
    """The domain as it is now cannot be captured or rolled back."""

    domain: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"domain {quoted(self.domain)} is refused: {self.why}"


@dataclass(eq=False)
class VolumeRefused(Refused):
    """A logical volume or thin pool in a state that must not be built upon."""

    volume: str
    why: str
    remedy: str = ""

    def message(self) -> str:
        return f"volume {self.volume} is refused: {self.why}"


@dataclass(eq=False)
class GroupAway(Refused):
    """A volume group that LVM does not show now; its volumes may exist all the same."""

    group: str
    why: str
    """What is wrong with the group, worded to follow its name."""
    snapshots: tuple[str, ...]
    remedy: str = ""
    forget: str = ""
    """The command that goes on without the group; empty when there is none."""

    def message(self) -> str:
        has = "has" if len(self.snapshots) == 1 else "have"
        return (
            f"volume group {quoted(self.group)} {self.why}, and {some(self.snapshots)} {has} "
            "volumes in it"
        )

    def hint(self) -> str:
        if not self.forget:
            return self.remedy
        return f"{self.remedy}; to go on and leave its volumes as they are: {self.forget}"


@dataclass(eq=False)
class NoSpace(Refused):
    """There is less room than the command would need."""

    where: str
    needed: str
    free: str
    remedy: str = "make room (`snapvm delete`, `lvextend`) or choose another place"

    def message(self) -> str:
        return f"not enough room in {self.where}: {self.needed} needed, {self.free} free"


@dataclass(eq=False)
class UndoUnclear(Refused):
    """A rollback has ended since the undo record was chosen, and may have kept something newer."""

    domain: str
    chosen: str
    """The id of what was to be gone back to."""

    def message(self) -> str:
        return (
            f"a rollback of {quoted(self.domain)} was unfinished when {self.chosen} was chosen as "
            "the state to go back to; since then it has been finished or taken back"
        )

    def hint(self) -> str:
        look = typed("list", self.domain)
        return f"`{look}` shows which; if you still want to undo: {typed('undo', self.domain)}"


@dataclass(eq=False)
class MeansAnother(Refused):
    """By the time a command had its turn, a word such as ``latest`` meant another snapshot."""

    reference: str
    meant: str
    means: str

    def message(self) -> str:
        return (
            f"{quoted(self.reference)} meant {quoted(self.meant)} when this command began, but now "
            f"means {quoted(self.means)}"
        )

    def hint(self) -> str:
        which = " or ".join(map(shlex.quote, (self.meant, self.means)))
        return f"nothing was done; name the snapshot you mean: {which}"


@dataclass(eq=False)
class KeptIsGone(Refused):
    """Somebody has deleted a snapshot that was to be kept, so another may have to stay for it."""

    remedy = "run the same command again: it decides afresh what to keep"
    snapshot: str
    kept: str

    def message(self) -> str:
        return (
            f"{quoted(self.snapshot)} may have to be kept now: {quoted(self.kept)}, which was to "
            "be kept, was deleted in the meantime"
        )


@dataclass(eq=False)
class SnapshotExists(Refused):
    """The name asked for is taken."""

    remedy = "choose another --name, or delete that one first"
    domain: str
    id: str

    def message(self) -> str:
        return f"{quoted(self.domain)}@{self.id} exists already"


@dataclass(eq=False)
class SnapshotReplaced(Refused):
    """The chosen snapshot is gone, and another one has got its id."""

    remedy = "`snapvm list` shows the existing snapshots: choose again"
    domain: str
    id: str

    def message(self) -> str:
        return (
            f"{quoted(self.domain)}@{self.id} was deleted in the meantime, and another snapshot "
            "now has its name"
        )


@dataclass(eq=False)
class RecordUnusable(Refused):
    """A record that cannot be read, or whose image or volumes are gone or changed."""

    remedy = "other snapshots are not affected; `snapvm list` shows them"
    path: str
    why: str
    is_of_part: bool = False
    """Whether ``path`` is not the record's, but that of its image, a side file or a disk."""

    def message(self) -> str:
        what = "" if self.is_of_part else "the record "
        return f"{what}{quoted(self.path)} cannot be used: {self.why}"


@dataclass(eq=False)
class RecordDamaged(RecordUnusable):
    """A record that is lost or damaged; its volumes and its image may still be there."""

    def hint(self) -> str:
        folder = shlex.quote(str(PurePath(self.path).parent))
        return (
            "`snapvm catalog rebuild --dry-run` shows whether it can be rebuilt; if it cannot, "
            f"move {folder} out of the state folder: `snapvm check` then finds the volumes left "
            "over from it, and `snapvm check --fix` removes them"
        )


@dataclass(eq=False)
class RecordNewer(RecordUnusable):
    """A record that is not damaged, but written by a newer snapvm in a newer format."""

    remedy = "use the snapvm that wrote it, or a newer one, and leave the record where it is"


@dataclass(eq=False)
class RecordUnread(RecordUnusable):
    """A record that may be whole, and that the host does not let be read now."""

    remedy = "leave it where it is; fix what prevents it from being read, then try again"


@dataclass(eq=False)
class NotConfirmed(Refused):
    """The user said no, or could not be asked."""

    what: str
    remedy: str = ""
    findings: tuple[Mapping[str, str], ...] = ()
    """What `check` had found before it asked."""

    def message(self) -> str:
        return f"{self.what}: not confirmed, nothing was done"

    def details(self) -> Mapping[str, Any]:
        return {"findings": list(self.findings)} if self.findings else {}


@dataclass(eq=False)
class NothingToLookInto(Refused):
    """A snapshot that is whole but has no memory image of the kind that is asked for."""

    remedy = "`snapvm show` tells what a snapshot contains; you may also give the path of an image"
    ref: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.ref)} cannot be examined: {self.why}"


@dataclass(eq=False)
class BadImage(Refused):
    """A memory image or stream that does not keep to its format, and the byte where it fails."""

    path: str
    offset_bytes: int
    why: str

    def message(self) -> str:
        return f"{quoted(self.path)}: at byte {self.offset_bytes}: {self.why}"


@dataclass(eq=False)
class UnreadableFile(Refused):
    """A file that the user named and that cannot be read."""

    remedy = "name a snapshot, DOM@ID, or the path of a memory image"
    path: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.path)}: {self.why}"


@dataclass(eq=False)
class Unsound(Refused):
    """A memory image that would not restore, or not as the domain that was captured."""

    path: str
    problems: int
    first: str
    report: Mapping[str, Any]
    """All that was found, as ``snapvm verify --json`` prints it."""

    def message(self) -> str:
        count = "a problem" if self.problems == 1 else f"{self.problems} problems, the first"
        return f"{quoted(self.path)} is not sound: {count}: {self.first}"

    def details(self) -> Mapping[str, Any]:
        return self.report


@dataclass(eq=False)
class NotReady(Refused):
    """A domain of which `doctor` found that a `take` would be refused."""

    domain: str
    count: int
    diagnosis: Mapping[str, Any]

    def message(self) -> str:
        what = "one thing stands" if self.count == 1 else f"{self.count} things stand"
        return f"{what} in the way of taking a snapshot of {quoted(self.domain)}"

    def details(self) -> Mapping[str, Any]:
        return self.diagnosis


@dataclass(eq=False)
class Found(Refused):
    """What `check` or `catalog rebuild` found to be out of order."""

    count: int
    findings: tuple[Mapping[str, str], ...]
    done: Mapping[str, Any] = field(default_factory=dict)
    """What the command had mended before, as ``--json`` prints it."""
    remedy: str = ""

    def message(self) -> str:
        return f"{self.count} problem{'' if self.count == 1 else 's'} found"

    def details(self) -> Mapping[str, Any]:
        return {**self.done, "findings": list(self.findings)}
