"""The journal of a `take`: what repair needs to take it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from snapvm import naming, recordfile
from snapvm.domainrun import DomainRun
from snapvm.jsonvalues import Wrong, each, optional, required, set_name, texts
from snapvm.model import DomainState, LvRef
from snapvm.planning import TakePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeJournal:
    """What is written down of a `take` before its first effect."""

    set: str
    """The set that the tags of the volumes name which it makes."""
    groups: tuple[str, ...]
    """The volume groups that its disks are in, by the names they had."""
    disks: tuple[LvRef, ...]
    """Empty in what an older snapvm wrote."""
    domain: str
    """The name it had; nobody goes by it."""
    was_running: bool
    """It is to run again if it stands still."""
    run: DomainRun
    quiesce: bool
    """Its guest's agent froze the file systems."""

    @classmethod
    def of_plan(cls, plan: TakePlan) -> TakeJournal:
        """Return what is to be written down of a `take` that has been decided on."""
        return cls(
            set=plan.set,
            groups=plan.groups,
            disks=tuple(disk.volume for disk in plan.disks),
            domain=plan.domain.name,
            was_running=plan.domain.state is DomainState.RUNNING,
            run=DomainRun.of(plan.domain),
            quiesce=plan.quiesce,
        )

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> TakeJournal:
        """Read it from plain JSON values; raise ``Wrong``.

        What is written in it becomes words of LVM's command lines.
        """
        groups = texts(said, "groups")
        if not all(map(naming.is_lvm_name, groups)):
            raise Wrong("'groups' holds what no group can be called")
        return cls(
            set=set_name(said, "set"),
            groups=groups,
            disks=each(said, "disks", recordfile.ref) if "disks" in said else (),
            domain=optional(said, "domain", default=""),
            was_running=required(said, "was_running", bool),
            run=DomainRun.from_dict(said),
            quiesce=optional(said, "quiesce", default=False),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "kind": "take",
            "set": self.set,
            "groups": list(self.groups),
            "disks": [recordfile.ref_dict(disk) for disk in self.disks],
            "domain": self.domain,
            "was_running": self.was_running,
            **self.run.as_dict(),
            "quiesce": self.quiesce,
        }

    def when_let_go(self) -> TakeJournal:
        """Return what it says once the domain stands still for its owner alone, if it does."""
        return replace(self, was_running=False)
