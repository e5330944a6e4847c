"""What is found in the folders of the catalog: records, damaged ones, journals of unfinished work.

``snapvm.catalog`` says where they are and what they mean.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from snapvm import durable, journalfile, naming, recordfile
from snapvm.attention import JournalUnusable
from snapvm.errors import WorkElsewhere
from snapvm.model import Record
from snapvm.refusals import RecordDamaged, RecordNewer, RecordUnusable

RECORD_FILE = "snapshot.json"
INTENT_FILE = "intent.json"
NAME_FILE = ".name"
_JOURNAL = re.compile(r"\.(?P<work>rollback|stop)\.json\Z")
_DRAFT = re.compile(r"\.(?P<id>.+)\.draft\Z")
_GONE = re.compile(r"\.(?P<id>.+)\.gone\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A record that cannot be read; the others are not affected."""

    path: Path
    domain: str
    id: str
    why: str
    is_newer: bool
    """It is whole, and a newer snapvm can read it."""

    def trouble(self) -> RecordUnusable:
        """Return what to raise when somebody needs it; its hint is what to do."""
        kind = RecordNewer if self.is_newer else RecordDamaged
        return kind(path=str(self.path), why=self.why)


class Work(StrEnum):
    """What a journal is of; with the name of its folder or file in it."""

    TAKE = "draft"
    DELETE = "gone"
    ROLLBACK = "rollback"
    STOP = "stop"
    """A domain that ends with its snapshot, once that is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A journal of work that never ended: of what, its folder or file, and what it says."""

    work: Work
    id: str
    path: Path
    intent: dict[str, Any]
    unusable: JournalUnusable | WorkElsewhere | None = None
    """Why it does not say what was under way, or is not this host's; nothing may be done then."""


def entry(domain_folder: str, name: str, called: str = "") -> Record | Damaged | None:
    """Read one record; None for something that is no folder, or vanished meanwhile.

    None, too, for one that cannot be of a domain ``called`` so: a `list` of one has others to read.
    Paths are text here: making ten thousand ``Path`` objects would take a third of a `list`.
    """
    folder = f"{domain_folder}/{name}"
    path = f"{folder}/{RECORD_FILE}"
    text = b""
    try:
        text = durable.read(path, recordfile.SIZE_LIMIT_BYTES)
        if called and not recordfile.may_be_of(text, called):
            return None
        record = recordfile.load(text, path)
        if record.id != name or record.domain_uuid != os.path.basename(domain_folder):
            raise RecordUnusable(path=path, why="it belongs to another place")
    except (NotADirectoryError, FileNotFoundError):
        if not os.path.isdir(folder):
            return None
        why = "it has no snapshot.json"
    except RecordUnusable as error:
        why = error.why
    except (OSError, ValueError) as error:
        why = str(error)
    else:
        return record
    return Damaged(
        path=Path(path),
        domain=name_in(Path(domain_folder)),
        id=name,
        why=why,
        is_newer=recordfile.is_newer(text),
    )


def leftovers(folder: Path) -> tuple[Leftover, ...]:
    """Return the journals in a domain's folder, of work that never ended."""
    found: list[Leftover] = []
    for name in listed(folder):
        path = folder / name
        if match := _DRAFT.match(name):
            found.append(_leftover(Work.TAKE, match["id"], path, path / INTENT_FILE))
        elif match := _GONE.match(name):
            found.append(_leftover(Work.DELETE, match["id"], path, path / RECORD_FILE))
        elif match := _JOURNAL.match(name):
            found.append(_leftover(Work(match["work"]), "", path, path))
    return tuple(found)


def _leftover(work: Work, id_: str, path: Path, journal: Path) -> Leftover:
    unusable: JournalUnusable | WorkElsewhere | None = None
    try:
        said = journalfile.load(journal)
    except JournalUnusable as error:
        return Leftover(work=work, id=id_, path=path, intent={}, unusable=error)
    host = _deleting_host(path) if work is Work.DELETE else said.elsewhere
    if host:
        unusable = WorkElsewhere(path=str(path), host=host)
    return Leftover(work=work, id=id_, path=path, intent=said.intent, unusable=unusable)


def _deleting_host(gone: Path) -> str:
    """Return what is known of it: there may be no room to write down who begins a delete."""
    try:
        return journalfile.load(gone / INTENT_FILE).elsewhere
    except JournalUnusable:
        return ""


def listed(folder: Path) -> list[str]:
    """Return the names in a folder; none when it is not there.

    Raises ``StorageFailed`` and ``NotAllowed``.
    """
    with durable.failing_untouched(folder), suppress(FileNotFoundError, NotADirectoryError):
        return os.listdir(folder)
    return []


def name_in(folder: Path) -> str:
    """Return the name of the domain a folder is of; its uuid when nothing says it."""
    said = ""
    with suppress(OSError, ValueError):
        said = durable.read(folder / NAME_FILE, 4096).decode(errors="replace")
    # No hypervisor can be asked for a text that C does not have.
    return said if said and "\0" not in said else _name_in_records(folder) or folder.name


def _name_in_records(folder: Path) -> str:
    """Return what some record says, the newest where ids are stamps; empty without any."""
    for name in sorted(listed(folder), reverse=True):
        path = f"{folder}/{name}/{RECORD_FILE}"
        with suppress(OSError, ValueError, RecordUnusable):
            if naming.is_id(name):
                record = recordfile.load(durable.read(path, recordfile.SIZE_LIMIT_BYTES), path)
                return record.domain
    return ""
