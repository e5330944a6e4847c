"""What is found in the folders of the catalog: records, damaged ones, journals of unfinished work.

``snapvm.catalog`` says where they are and what they mean.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Any

from snapvm import durable, journalfile, naming, recordfile
from snapvm.attention import JournalUnusable
from snapvm.errors import WorkElsewhere
from snapvm.model import DomainUuid, Record
from snapvm.refusals import RecordDamaged, RecordNewer, RecordUnread, RecordUnusable

RECORD_FILE = "snapshot.json"
INTENT_FILE = "intent.json"
NAME_FILE = ".name"
_HIDDEN_FOLDER = re.compile(r"\.(?P<id>.+)\.(?P<work>draft|gone)\Z")
_JOURNAL_FILE = re.compile(r"\.(?P<work>rollback|stop)\.json\Z")


class Fault(Enum):
    """Why a record cannot be read."""

    DAMAGED = auto()
    NEWER = auto()
    """It is whole, and a newer snapvm can read it."""
    UNREAD = auto()
    """It may be whole, but cannot be read now: its server is down, say, or SELinux forbids it."""


_TROUBLES: Mapping[Fault, type[RecordUnusable]] = {
    Fault.DAMAGED: RecordDamaged,
    Fault.NEWER: RecordNewer,
    Fault.UNREAD: RecordUnread,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A record that cannot be read; the others are not affected."""

    path: Path
    domain: str
    id: str
    why: str
    fault: Fault

    @property
    def domain_uuid(self) -> DomainUuid:
        """The uuid of its domain, whose folder has that name."""
        return DomainUuid(self.path.parent.parent.name)

    @property
    def may_be_whole(self) -> bool:
        """Whether it must not be called damaged, nor be made anew in its place."""
        return self.fault is not Fault.DAMAGED

    def trouble(self) -> RecordUnusable:
        """Return what to raise when somebody needs it; its hint is what to do."""
        return _TROUBLES[self.fault](path=str(self.path), why=self.why)


class Work(StrEnum):
    """What a journal is of; the value is a part of the name of its folder or file."""

    TAKE = "draft"
    """In a hidden folder, like that of DELETE."""
    DELETE = "gone"
    ROLLBACK = "rollback"
    """In a file of its own, like that of STOP."""
    STOP = "stop"
    """A domain that ends with its snapshot, once that is whole."""


def hidden_folder(id_: str, work: Work) -> str:
    """Return the name of the folder of a record that is being made or deleted."""
    return f".{id_}.{work}"


def journal_file(work: Work) -> str:
    """Return the name of the journal of a rollback or a stop."""
    return f".{work}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A journal of work that never ended: of what, its folder or file, and what it says."""

    work: Work
    id: str
    path: Path
    intent: dict[str, Any]
    unusable: JournalUnusable | WorkElsewhere | None = None
    """Why it does not say what was under way, or is not this host's; nothing may be done then."""

    @property
    def set(self) -> str | None:
        """The set whose volumes it tells of; None when it names none."""
        return str(self.intent["set"]) if "set" in self.intent else None


def entry(domain_folder: str, name: str, called: str = "") -> Record | Damaged | None:
    """Read one record; return None for what is no folder, or has vanished meanwhile.

    With ``called``, return None as well for a record that cannot be of a domain of that name: a
    `list` of one domain need not parse the records of others.

    Paths are text here: making ten thousand ``Path`` objects would take a third of a `list`.
    """
    folder = f"{domain_folder}/{name}"
    path = f"{folder}/{RECORD_FILE}"
    fault = Fault.DAMAGED
    try:
        return _record(domain_folder, name, called, path)
    except (NotADirectoryError, FileNotFoundError):
        if not os.path.isdir(folder):
            return None
        why = "it has no snapshot.json"
    except RecordNewer as error:
        why, fault = error.why, Fault.NEWER
    except RecordUnusable as error:
        why = error.why
    except OSError as error:
        why = error.strerror or str(error)
        fault = Fault.DAMAGED if durable.is_of_file(error) else Fault.UNREAD
    except ValueError as error:
        why = str(error)
    return Damaged(
        path=Path(path),
        domain=name_in(Path(domain_folder)),
        id=name,
        why=why,
        fault=fault,
    )


def _record(domain_folder: str, name: str, called: str, path: str) -> Record | None:
    """Read a record; raise ``OSError``, ``ValueError`` and ``RecordUnusable``.  See ``entry``."""
    text = durable.read(path, recordfile.SIZE_LIMIT_BYTES)
    if called and not recordfile.may_be_of(text, called):
        return None
    record = recordfile.load(text, path)
    if record.id != name and name not in listed(Path(domain_folder)):
        return None  # CIFS and exFAT find it, for they take capitals and small letters for the same
    if record.id != name or record.domain_uuid != os.path.basename(domain_folder):
        raise RecordUnusable(path=path, why="it belongs to another place")
    return record


def leftovers(folder: Path) -> tuple[Leftover, ...]:
    """Return the journals in a domain's folder, of work that never ended."""
    found: list[Leftover] = []
    for name in listed(folder):
        # A path is made of the few that are journals: a `prune` looks at thousands for each record.
        if match := _HIDDEN_FOLDER.match(name):
            work, path = Work(match["work"]), folder / name
            journal = INTENT_FILE if work is Work.TAKE else RECORD_FILE
            found.append(_leftover(work, match["id"], path, path / journal))
        elif match := _JOURNAL_FILE.match(name):
            path = folder / name
            found.append(_leftover(Work(match["work"]), "", path, path))
    return tuple(found)


def _leftover(work: Work, id_: str, path: Path, journal: Path) -> Leftover:
    try:
        said = journalfile.load(journal)
    except JournalUnusable as error:
        return Leftover(work=work, id=id_, path=path, intent={}, unusable=error)
    host = _deleting_host(path) if work is Work.DELETE else said.elsewhere
    unusable = None
    if host:
        unusable = WorkElsewhere(path=str(path), host=host, domain=name_in(path.parent))
    return Leftover(work=work, id=id_, path=path, intent=said.intent, unusable=unusable)


def _deleting_host(gone: Path) -> str:
    """Return the other host that deletes a record, as far as it had room to write that down."""
    try:
        return journalfile.load(gone / INTENT_FILE).elsewhere
    except JournalUnusable:
        return ""


def listed(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none when it is not there.

    Raises ``StorageFailed`` and ``NotAllowed``.
    """
    with durable.failing_untouched(folder), suppress(FileNotFoundError, NotADirectoryError):
        return sorted(os.listdir(folder))
    return []


def name_in(folder: Path) -> str:
    """Return the name of the domain that a folder is of; its uuid when nothing tells the name."""
    said = ""
    with suppress(OSError, ValueError):
        said = durable.read(folder / NAME_FILE, 4096).decode(errors="replace")
    # A text with a NUL in it is no name that a hypervisor could be asked for.
    return said if said and "\0" not in said else _name_in_records(folder) or folder.name


def _name_in_records(folder: Path) -> str:
    """Return the name in the newest record: a domain may have been renamed; empty without any."""
    records: list[Record] = []
    for name in filter(naming.is_id, listed(folder)):
        path = f"{folder}/{name}/{RECORD_FILE}"
        with suppress(OSError, ValueError, RecordUnusable):
            text = durable.read(path, recordfile.SIZE_LIMIT_BYTES)
            records.append(recordfile.load(text, path))
    newest = max(records, key=lambda record: record.place, default=None)
    return "" if newest is None else newest.domain
