"""What is refused before anything has been touched: exit status 4."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from snapvm.errors import ExitStatus, SnapvmError, quoted, some


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


@dataclass(eq=False)
class NotAllowed(Refused):
    """What is root's, and somebody else would have to read or make before anything is done."""

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
    """A volume group that LVM does not see, or shows nothing of: what is in it may exist."""

    group: str
    why: str
    """What is the matter with it, as a verb and its rest."""
    snapshots: tuple[str, ...]
    remedy: str = ""
    forget: str = ""
    """What is typed to do it without the group."""

    def message(self) -> str:
        has = "has" if len(self.snapshots) == 1 else "have"
        return (
            f"volume group {quoted(self.group)} {self.why}, and {some(self.snapshots)} {has} "
            "volumes in it"
        )

    def hint(self) -> str:
        if not self.forget:
            return self.remedy
        return f"{self.remedy}; to leave behind what is there: {self.forget}"


@dataclass(eq=False)
class NoSpace(Refused):
    """Less room than is needed, known before anything was touched."""

    where: str
    needed: str
    free: str
    remedy: str = "make room (`snapvm delete`, `lvextend`) or choose another place"

    def message(self) -> str:
        return f"not enough room in {self.where}: {self.needed} needed, {self.free} free"


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
    """Another snapshot has the id of the one that was chosen, which is gone."""

    remedy = "`snapvm list` shows the snapshots there are: choose again"
    domain: str
    id: str

    def message(self) -> str:
        return (
            f"{quoted(self.domain)}@{self.id} was deleted meanwhile, and another snapshot has its "
            "name now"
        )


@dataclass(eq=False)
class RecordUnusable(Refused):
    """A record that cannot be read, or whose parts are gone or not what they were."""

    remedy = "other snapshots are not affected; `snapvm list` shows them"
    path: str
    why: str

    def message(self) -> str:
        return f"the record {quoted(self.path)} cannot be used: {self.why}"


@dataclass(eq=False)
class RecordDamaged(RecordUnusable):
    """A record that nobody can read any more; its volumes and its image may be there."""

    def hint(self) -> str:
        folder = shlex.quote(str(PurePath(self.path).parent))
        return (
            "`snapvm catalog rebuild --dry-run` tells whether it can be made anew; if it cannot, "
            f"move {folder} out of the state folder, and `snapvm check` finds the volumes that are "
            "left of it, which `snapvm check --fix` removes"
        )


@dataclass(eq=False)
class RecordNewer(RecordUnusable):
    """A record that is whole, and that only the newer snapvm which wrote it can read."""

    remedy = "use the snapvm that wrote it, or a newer one, and leave the record where it is"


@dataclass(eq=False)
class NotConfirmed(Refused):
    """The user said no, or could not be asked."""

    what: str
    remedy: str = ""
    findings: tuple[Mapping[str, str], ...] = ()
    """What `check` found all the same."""

    def message(self) -> str:
        return f"{self.what}: not confirmed, nothing was done"

    def details(self) -> Mapping[str, Any]:
        return {"findings": list(self.findings)} if self.findings else {}


@dataclass(eq=False)
class NothingToLookInto(Refused):
    """A snapshot that is whole, and has no memory image of the kind that is asked for."""

    remedy = "`snapvm show` tells what a snapshot has; the path of an image is looked into as well"
    ref: str
    why: str

    def message(self) -> str:
        return f"{quoted(self.ref)} cannot be looked into: {self.why}"


@dataclass(eq=False)
class BadImage(Refused):
    """A memory image or stream that is not what its format demands, with the place."""

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
    """A memory image that would not restore as the domain it was taken of."""

    path: str
    problems: int
    first: str
    report: Mapping[str, Any]
    """Everything found, as ``snapvm verify --json`` tells it."""

    def message(self) -> str:
        count = "a problem" if self.problems == 1 else f"{self.problems} problems, the first"
        return f"{quoted(self.path)} is not sound: {count}: {self.first}"

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
        return f"{what} in the way of a take of {quoted(self.domain)}"

    def details(self) -> Mapping[str, Any]:
        return self.diagnosis


@dataclass(eq=False)
class Found(Refused):
    """What `check` found not to be in order."""

    count: int
    findings: tuple[Mapping[str, str], ...]
    done: Mapping[str, Any] = field(default_factory=dict)
    """What was mended before that, as it is told when nothing is left to be found."""
    remedy: str = ""

    def message(self) -> str:
        return f"{self.count} thing{'' if self.count == 1 else 's'} not in order"

    def details(self) -> Mapping[str, Any]:
        return {**self.done, "findings": list(self.findings)}
