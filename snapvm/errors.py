"""What a deliberate failure of snapvm is: its data, its words, its hint and its exit status.

A failure is raised where it is known, with the data it is about.  It is worded here or in one of
the three modules beside this one, and only ``snapvm.cli.failures`` prints it.  By exit status::

    2 usage, 3 not found, 5 locked, 130 interrupted        here
    4 refused: nothing has been touched                    snapvm.refusals
    6 failed and put back; deletes that stopped midway     snapvm.failures
    7 to be repaired, 8 to be looked after                 snapvm.attention
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

_NAMED = 5  # how many names a message tells before it only counts


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

    @property
    def leaves_work(self) -> bool:
        """Whether somebody has to see to something: it was not all done, nor all put back."""
        return self in (ExitStatus.REPAIR_NEEDED, ExitStatus.ATTENTION)


_MEANINGS = {
    ExitStatus.DONE: "All of the work was done.",
    ExitStatus.BUG: "A bug in snapvm; please report what it printed.",
    ExitStatus.USAGE: "The command line or a setting is wrong.",
    ExitStatus.NOT_FOUND: "There is no such domain or snapshot.",
    ExitStatus.REFUSED: "Refused before anything was touched; or `check`, `doctor`, `verify` or "
    "`catalog rebuild` found a problem.",
    ExitStatus.LOCKED: "Another snapvm is working on this domain, here or on another host that "
    "sees the state folder.",
    ExitStatus.FAILED: "Failed; everything was put back as it was, except for snapshots that the "
    "message says were deleted.",
    ExitStatus.REPAIR_NEEDED: "Failed; `snapvm repair` cleans up what was left behind, as does the "
    "next take, rollback, undo, delete or prune that works on the domain.",
    ExitStatus.ATTENTION: "The domain could not be resumed or started and needs attention.",
    ExitStatus.INTERRUPTED: "Interrupted; everything was put back as it was, except for what the "
    "message says was deleted or remains.",
}


class SnapvmError(Exception):
    """Base of every failure snapvm expects; subclasses are dataclasses of what they are about."""

    exit_status: ExitStatus = ExitStatus.FAILED
    remedy: str = ""
    """What to do or type next: the same for the whole class, or given by whoever raises it."""
    signal_put_off: str = ""
    """A signal that was put off while the work went on that failed; the command must end now."""
    mended: tuple[str, ...] = ()
    """What a `repair` that ends with this has done all the same, a sentence each."""

    def message(self) -> str:
        """Say what is wrong and why, in one sentence without a final full stop."""
        raise NotImplementedError

    def hint(self) -> str:
        """Say what to do or type next; empty when there is nothing sensible to say."""
        return self.remedy

    def details(self) -> Mapping[str, Any]:
        """Return what ``--json`` prints beside the failure itself."""
        return {}

    def __str__(self) -> str:
        return self.message()


def quoted(text: str) -> str:
    """Quote a name that came from outside, so that control characters cannot reach a terminal."""
    return repr(text) if not text.isprintable() or " " in text or not text else text


def typed(verb: str, *names: str) -> str:
    """Return a snapvm command as it is typed in a shell; a name may begin with a hyphen."""
    apart = ["--"] if any(name.startswith("-") for name in names) else []
    return shlex.join(["snapvm", *verb.split(), *apart, *names])


def some(names: tuple[str, ...]) -> str:
    """Name the first few, and count the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _domain_alone(text: str) -> str:
    """Say that a domain is wanted, not a snapshot; return nothing for what looks like a domain.

    A domain's name may hold an @, but more likely DOM@ID was typed.
    """
    domain, _, id_ = text.rpartition("@")
    return f"name the domain alone, such as {quoted(domain)}, without @{id_}" if domain else ""


# --- 2: usage ---------------------------------------------------------------------------------


@dataclass(eq=False)
class BadName(SnapvmError):
    """A snapshot name or reference that cannot be one."""

    exit_status = ExitStatus.USAGE
    text: str
    why: str
    remedy: str = (
        "a snapshot is written DOM@ID, as `snapvm list` shows it, or DOM@latest for the newest"
    )

    def message(self) -> str:
        return f"{self.text!r} cannot be used: {self.why}"


@dataclass(eq=False)
class IdleOption(SnapvmError):
    """An option that would do nothing for this domain or snapshot."""

    exit_status = ExitStatus.USAGE
    option: str
    why: str

    def message(self) -> str:
        return f"{self.option} would have no effect: {self.why}"

    def hint(self) -> str:
        return f"leave {self.option} out"


@dataclass(eq=False)
class BadSetting(SnapvmError):
    """A settings file, SNAPVM_* variable or option that cannot be used."""

    exit_status = ExitStatus.USAGE
    where: str
    """The variable, the option, or the file and the key in it."""
    why: str

    def message(self) -> str:
        return f"the setting in {self.where} cannot be used: {self.why}"

    def hint(self) -> str:
        remedy = f"correct it, or `unset {self.where}`"
        if not self.where.startswith("SNAPVM_"):
            remedy = "correct it there, or leave it out"
        return f"{remedy}; `man snapvm` describes each setting under ENVIRONMENT"


# --- 3: not found -----------------------------------------------------------------------------


@dataclass(eq=False)
class UnknownDomain(SnapvmError):
    """No hypervisor of this host, and no record, knows a domain of this name."""

    exit_status = ExitStatus.NOT_FOUND
    remedy = "`virsh list --all` or `xl list` shows the domains of this host"
    domain: str

    def message(self) -> str:
        return f"there is no domain named {quoted(self.domain)}"

    def hint(self) -> str:
        alone = _domain_alone(self.domain)
        return f"{alone}; `take` gives a new snapshot its id by --name" if alone else self.remedy


@dataclass(eq=False)
class UnknownSnapshot(SnapvmError):
    """The domain has no snapshot of this id, or none at all."""

    exit_status = ExitStatus.NOT_FOUND
    remedy = "`snapvm list` shows the existing snapshots"
    domain: str
    id: str
    begins: str = ""
    """The id that begins with ``id``, where only a whole id is accepted."""

    def message(self) -> str:
        if not self.id:
            return f"there is no snapshot of {quoted(self.domain)}"
        return f"there is no snapshot {quoted(self.domain)}@{quoted(self.id)}"

    def hint(self) -> str:
        if self.begins:
            whole = "with --yes or --dry-run the whole id is required"
            return f"{quoted(self.begins)} begins with that; {whole}"
        return ("" if self.id else _domain_alone(self.domain)) or self.remedy


@dataclass(eq=False)
class NothingToUndo(SnapvmError):
    """The domain has no record of what was current before a rollback."""

    exit_status = ExitStatus.NOT_FOUND
    remedy = "`snapvm list` shows the existing snapshots; `undo` goes back to one of kind undo"
    domain: str
    is_pending: bool = False
    """A rollback of the domain has not ended, and has made no record to go back to yet."""

    def message(self) -> str:
        return f"there is nothing to undo for {quoted(self.domain)}: it has no undo snapshot"

    def hint(self) -> str:
        if "@" in self.domain:
            return f"`{typed('rollback', self.domain)}` goes back to that snapshot"
        if self.is_pending:
            mending = typed("repair", self.domain)
            return f"a rollback of it is unfinished: `{mending}` finishes it or takes it back"
        return self.remedy


@dataclass(eq=False)
class AmbiguousSnapshot(SnapvmError):
    """A prefix that several ids begin with."""

    exit_status = ExitStatus.NOT_FOUND
    remedy = "type more of the id"
    domain: str
    prefix: str
    ids: tuple[str, ...]

    def message(self) -> str:
        return f"{quoted(self.domain)}@{self.prefix} could be any of {some(self.ids)}"


@dataclass(eq=False)
class AmbiguousDomain(SnapvmError):
    """A reference that fits snapshots of several domains: a name may pass from one to another."""

    exit_status = ExitStatus.NOT_FOUND
    domain: str
    id: str
    """Empty where an undo was asked for."""
    uuids: tuple[str, ...]
    known_as: tuple[str, ...]
    """The present name of each."""

    def message(self) -> str:
        what = f"{quoted(self.domain)}@{self.id}" if self.id else f"an undo of {self.domain!r}"
        known = zip(self.uuids, self.known_as, strict=True)
        whose = tuple(f"{quoted(name)} ({uuid})" for uuid, name in known)
        return f"{what} could refer to any of the domains {some(whose)}"

    def hint(self) -> str:
        at = f"@{self.id}" if self.id else ""
        told = " or ".join(f"{uuid}{at}" for uuid in self.uuids[:_NAMED])
        return f"name the domain by its uuid: {told}"

    def details(self) -> Mapping[str, Any]:
        return {"references": [f"{uuid}@{self.id}" for uuid in self.uuids if self.id]}


# --- 5: locked, 130: interrupted ----------------------------------------------------------------


@dataclass(eq=False)
class Locked(SnapvmError):
    """Another snapvm holds the domain's lock."""

    exit_status = ExitStatus.LOCKED
    domain: str
    holder: str
    shared: str = ""
    """The path of the lock file, if it is one that other hosts see too."""
    was_waited_for: bool = False

    def message(self) -> str:
        return f"another snapvm is working on {quoted(self.domain)} ({self.holder})"

    def hint(self) -> str:
        remedy = "wait for it to end, or give --wait SECONDS"
        if self.was_waited_for:
            remedy = "it had not ended when the waiting time was over: try again when it has"
        if not self.shared:
            return remedy
        return (
            f"{remedy}; if that host is permanently down and its lock is still there: "
            f"rm {shlex.quote(self.shared)}"
        )


@dataclass(eq=False)
class WorkElsewhere(SnapvmError):
    """A journal that another host has written, which shares the state folder and may be at work."""

    exit_status = ExitStatus.LOCKED
    remedy = (
        "wait for it, or run `snapvm repair` on that host; if that host is permanently down, or "
        "is this one before it was installed anew, and the domain runs on no other: "
        "snapvm repair --take-over DOM"
    )
    path: str
    host: str

    def message(self) -> str:
        return (
            f"the host {quoted(self.host)} is at work on the domain, or left its work unfinished "
            f"({quoted(self.path)})"
        )


@dataclass(eq=False)
class Interrupted(SnapvmError):
    """Ctrl-C or SIGTERM; everything was put back."""

    exit_status = ExitStatus.INTERRUPTED
    signal: str
    became: str = field(default="everything was put back as it was", kw_only=True)
    """What became of the work."""

    def message(self) -> str:
        return f"interrupted by {self.signal}; {self.became}"
