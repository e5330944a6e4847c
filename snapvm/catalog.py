"""The catalog: one folder per snapshot, complete when it is visible.

::

    <state>/domains/<domain uuid>/.name                  the domain's name, for look-ups
    <state>/domains/<domain uuid>/<id>/snapshot.json     a record, beside its memory image
    <state>/domains/<domain uuid>/.<id>.draft/           a take under way: intent.json and the rest
    <state>/domains/<domain uuid>/.<id>.gone/            a delete under way
    <state>/domains/<domain uuid>/.rollback.json         a rollback under way
    <state>/domains/<domain uuid>/.<id>.aside/           files for the undo record of a rollback
    <state>/domains/<domain uuid>/.stop.json             a domain about to end, being captured
    <state>/domains/.<domain uuid>.lock                  which host works on the domain (flock)
    <run>/<domain uuid>.lock                             who works on it on this host (flock)

Names that begin with a dot are no records: the domain's name, and journals for repair.
A record becomes visible by one rename, after everything in its folder is on the disk.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapvm import crashpoint, durable, journalfile, locking, naming, recordfile, recordfolder
from snapvm.clock import Deadline
from snapvm.errors import UnknownSnapshot
from snapvm.failures import StorageFailed
from snapvm.model import DomainUuid, Record, SnapshotId
from snapvm.recordfolder import INTENT_FILE, NAME_FILE, RECORD_FILE, Damaged, Leftover, Work
from snapvm.refusals import SnapshotExists, SnapshotReplaced

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The folder of a take under way."""

    domain_uuid: DomainUuid
    id: SnapshotId
    folder: Path


class Catalog:
    """The records below one state folder; every write happens under the domain's lock."""

    def __init__(self, state_dir: Path, run_dir: Path, *, wait_seconds: float = 0.0) -> None:
        self._domains = state_dir / "domains"
        self._run = run_dir
        self._wait_seconds = wait_seconds

    @contextmanager
    def locked(self, uuid: DomainUuid, name: str, *, waits: bool = True) -> Iterator[None]:
        """Hold the domain's lock for the block, and the one that all hosts see; see ``locking``.

        Without ``waits`` they have to be free at once, for whoever only looks whether somebody is
        at work.  Raises ``Locked``, ``StorageFailed`` and ``NotAllowed``.
        """
        with durable.failing_untouched(self._run):
            durable.make_folder(self._run)
        # The lock of all hosts lies in it.  The state folder itself is not made: its name may be
        # mistyped.
        with suppress(OSError):
            self._domains.mkdir(mode=0o700)
            durable.sync_folder(self._domains.parent)
        own = self._run / f"{_checked(uuid)}.lock"
        others = self._domains / f".{uuid}.lock"
        limit = Deadline(self._wait_seconds if waits else 0.0)
        with (
            locking.locked(own, name, wait_seconds=limit.left_seconds),
            locking.locked_among_hosts(others, name, wait_seconds=limit.left_seconds),
        ):
            yield

    # --- reading ---

    def uuids_of(self, name: str) -> tuple[DomainUuid, ...]:
        """Return the uuids under which snapshots of domains of this name, or journals, are kept.

        A domain that is defined anew gets another uuid, and one of xl's with every `xl create`
        unless its configuration has one: that leaves hundreds with nothing to keep.
        """
        named = (each for each in self._domain_folders() if recordfolder.name_in(each) == name)
        kept = (each for each in named if any(n != NAME_FILE for n in recordfolder.listed(each)))
        return tuple(DomainUuid(folder.name) for folder in kept)

    def names(self) -> tuple[str, ...]:
        """Return the names of all domains that have or had records, sorted, each once."""
        return tuple(sorted({recordfolder.name_in(folder) for folder in self._domain_folders()}))

    def ids(self, uuid: DomainUuid) -> list[SnapshotId]:
        """Return the ids of a domain's records, damaged ones too, sorted; none of them is read."""
        names = filter(naming.is_id, recordfolder.listed(self._folder(uuid)))
        return [SnapshotId(name) for name in names]

    def has(self, uuid: DomainUuid, id_: str) -> bool:
        """Tell whether an id is taken, by a record or by one that is being made or deleted."""
        folder = self._folder(uuid)
        hidden = (recordfolder.hidden_folder(id_, work) for work in (Work.TAKE, Work.DELETE))
        with durable.failing_untouched(folder):
            return any(durable.is_there(folder / name) for name in (id_, *hidden))

    def get(self, uuid: DomainUuid, id_: SnapshotId) -> Record:
        """Return one record; raise ``RecordUnusable`` or ``UnknownSnapshot``."""
        entry = recordfolder.entry(str(self._folder(uuid)), id_)
        if entry is None:
            raise UnknownSnapshot(domain=uuid, id=id_)
        if isinstance(entry, Damaged):
            raise entry.trouble()
        return entry

    def again(self, record: Record) -> Record:
        """Return the record as it is under the lock: since it was chosen its id may be another's.

        Raises ``SnapshotReplaced``, ``UnknownSnapshot`` and ``RecordUnusable``.
        """
        try:
            known = self.get(record.domain_uuid, record.id)
        except UnknownSnapshot:
            raise UnknownSnapshot(domain=record.domain, id=record.id) from None
        if known.set != record.set:
            raise SnapshotReplaced(domain=record.domain, id=record.id)
        return known

    def has_record(self, uuid: DomainUuid, id_: str, set_: str) -> bool:
        """Tell whether a record of this id is visible, and has this set."""
        entry = recordfolder.entry(str(self._folder(uuid)), id_) if naming.is_id(id_) else None
        return isinstance(entry, Record) and entry.set == set_

    def entries(self, uuid: DomainUuid | None = None) -> Iterator[Record | Damaged]:
        """Yield every record, of one domain or of all, damaged ones too, in no order."""
        folders = self._domain_folders() if uuid is None else [self._folder(uuid)]
        for folder in folders:
            yield from _entries(folder)

    def records(self, uuid: DomainUuid) -> Iterator[Record]:
        """Yield the records of a domain that can be read, in no order."""
        return (entry for entry in self.entries(uuid) if isinstance(entry, Record))

    def records_of(self, uuid: DomainUuid, name: str) -> Iterator[Record]:
        """Yield a domain's records that can be read and were made while it had this name."""
        entries = _entries(self._folder(uuid), called=name)
        return (each for each in entries if isinstance(each, Record) and each.domain == name)

    def folder(self, uuid: DomainUuid, id_: SnapshotId) -> Path:
        """Return where a record and its files are, or would be."""
        return self._folder(uuid) / id_

    def path(self, record: Record, file: str) -> Path:
        """Return the path of a file that belongs to a record, such as its memory image."""
        return self._folder(record.domain_uuid) / record.id / file

    # --- writing ---

    def draft(self, uuid: DomainUuid, id_: SnapshotId) -> Draft:
        """Say where a new snapshot would be made; nothing is made yet."""
        folder = self._folder(uuid) / recordfolder.hidden_folder(id_, Work.TAKE)
        return Draft(domain_uuid=uuid, id=id_, folder=folder)

    def begin(self, draft: Draft, name: str, intent: dict[str, Any]) -> None:
        """Make the folder of a new snapshot and write down, durably, what is intended.

        Raises ``SnapshotExists`` when the id is taken.
        """
        if self.has(draft.domain_uuid, draft.id):
            raise SnapshotExists(domain=name, id=draft.id)
        folder = self._folder(draft.domain_uuid)
        with durable.failing_as_storage(draft.folder):
            durable.make_folder(folder)
            if recordfolder.name_in(folder) != name or not durable.is_there(folder / NAME_FILE):
                durable.write(folder / NAME_FILE, name.encode())
            durable.make_folder(draft.folder)
            durable.write(draft.folder / INTENT_FILE, journalfile.dump(intent))

    def amend(self, draft: Draft, intent: dict[str, Any]) -> None:
        """Write down, durably, what is intended by now; harmless when the folder is gone."""
        path = draft.folder / INTENT_FILE
        with durable.failing_as_storage(path):
            if durable.is_there(path):
                durable.write(path, journalfile.dump(intent))

    def commit(self, draft: Draft, record: Record) -> None:
        """Make a record visible: everything in its folder durable first, then one rename.

        When it fails, with ``StorageFailed``, the record is not visible; with ``NameUnclear`` it
        is, and a boot of the host may take it back: what belongs to it has to stay.
        """
        folder = self._folder(draft.domain_uuid)
        with durable.failing_as_storage(draft.folder):
            durable.write(draft.folder / RECORD_FILE, recordfile.dump(record).encode())
            for path in draft.folder.iterdir():
                durable.sync_file(path)
            durable.sync_folder(draft.folder)
            with crashpoint.around("commit"):
                durable.rename(draft.folder, folder / draft.id)
        # In a visible record the intent means nothing: it may stay if it cannot be removed.
        with suppress(OSError):
            (folder / draft.id / INTENT_FILE).unlink()

    def put(self, record: Record, files: Path, *, name: str = "") -> None:
        """Make a record visible with the files of a folder, which may be missing, and remove that.

        From now on its domain goes by the name in the record, or by ``name``.  Harmless when all
        of this has been done before.
        """
        folder = self._folder(record.domain_uuid) / record.id
        with durable.failing_as_storage(folder):
            is_visible = durable.is_there(folder)
        if not is_visible:
            draft = self.draft(record.domain_uuid, record.id)
            self.discard(draft)
            self.begin(draft, name or record.domain, {})
            with durable.failing_as_storage(files):
                for path in files.iterdir() if durable.is_there(files) else ():
                    _put(path, draft.folder / path.name)
            self.commit(draft, record)
        self._remove(files)

    def aside(self, uuid: DomainUuid, id_: SnapshotId) -> Path:
        """Say where files wait for the record that a rollback is going to make."""
        return self._folder(uuid) / f".{id_}.aside"

    def discard(self, draft: Draft) -> None:
        """Remove the folder of a take that will not be; harmless when there is none."""
        self._remove(draft.folder)

    def hide(self, record: Record) -> Path:
        """Begin to delete a record: it is not visible any more, but its parts still exist.

        When it fails, with ``StorageFailed``, it is visible; with ``NameUnclear`` it is not.
        """
        folder = self._folder(record.domain_uuid)
        gone = folder / recordfolder.hidden_folder(record.id, Work.DELETE)
        # Tells other hosts who deletes.  A full disk must not stop a delete: it is what makes room.
        with suppress(OSError):
            durable.write(folder / record.id / INTENT_FILE, journalfile.dump({}))
        with durable.failing_as_storage(gone), crashpoint.around("hide"):
            durable.rename(folder / record.id, gone)
        return gone

    def forget(self, gone: Path) -> None:
        """End a delete: remove the folder of a hidden record; see ``durable.remove_folder``."""
        self._remove(gone)

    def settle_names(self, uuid: DomainUuid) -> None:
        """Bring to the disk which records of a domain are visible now.

        A snapvm that was killed may have renamed a folder and not yet synced that.  Raises
        ``StorageFailed``.
        """
        with durable.failing_as_storage(self._folder(uuid)):
            durable.sync_folder(self._folder(uuid))

    # --- journals ---

    def write_journal(self, uuid: DomainUuid, work: Work, intent: dict[str, Any]) -> None:
        """Write down, durably, how far the rollback or the stop of a domain is."""
        path = self._folder(uuid) / recordfolder.journal_file(work)
        with durable.failing_as_storage(path):
            durable.write(path, journalfile.dump(intent))

    def end_journal(self, uuid: DomainUuid, work: Work) -> None:
        """Remove the journal of what is done or was taken back; harmless when there is none."""
        path = self._folder(uuid) / recordfolder.journal_file(work)
        with durable.failing_as_storage(path), crashpoint.around(f"end {path.name}"):
            for each in (path, durable.unfinished(path)):
                # Of a read-only file system unlink(2) says EROFS even of what is not there.
                if durable.is_there(each):
                    each.unlink(missing_ok=True)
            if durable.is_there(path.parent):
                durable.sync_folder(path.parent)

    def leftovers(self, uuid: DomainUuid) -> tuple[Leftover, ...]:
        """Return the journals of work on a domain that never ended."""
        return recordfolder.leftovers(self._folder(uuid))

    def domains(self) -> tuple[tuple[DomainUuid, str], ...]:
        """Return uuid and name of every domain the catalog has a folder for."""
        return tuple(
            (DomainUuid(path.name), recordfolder.name_in(path)) for path in self._domain_folders()
        )

    # --- inside ---

    def _folder(self, uuid: DomainUuid) -> Path:
        return self._domains / _checked(uuid)

    def _domain_folders(self) -> list[Path]:
        names = recordfolder.listed(self._domains)
        if not names and _is_blocked_by_file(self._domains):
            raise StorageFailed(path=str(self._domains), why="it is not a folder")
        if not names:
            durable.require_no_dead_link(self._domains)
        return [self._domains / name for name in names if _UUID.match(name)]

    def _remove(self, folder: Path) -> None:
        with durable.failing_as_storage(folder), crashpoint.around("remove a folder"):
            for each in (durable.unfinished(folder), folder):
                if durable.is_there(each):
                    durable.remove_folder(each)


def _put(path: Path, new: Path) -> None:
    """Give a small file another name too, or copy it on a file system without hard links.

    Those of CIFS and exFAT have none.
    """
    try:
        os.link(path, new)
    except OSError:
        durable.write(new, path.read_bytes())


def _entries(folder: Path, called: str = "") -> Iterator[Record | Damaged]:
    """Yield the records in a domain's folder; for ``called`` see ``recordfolder.entry``."""
    domain_folder = str(folder)
    for name in filter(naming.is_id, recordfolder.listed(folder)):
        entry = recordfolder.entry(domain_folder, name, called)
        if entry is not None:
            yield entry


def _is_blocked_by_file(folder: Path) -> bool:
    """Tell whether there can be no such folder, because it, or a folder above it, is a file."""
    try:
        return not stat.S_ISDIR(folder.stat().st_mode)
    except NotADirectoryError:
        return True
    except OSError:
        return False


def _checked(uuid: str) -> str:
    if not _UUID.match(uuid):
        raise StorageFailed(path=uuid, why="this is not the uuid of a domain")
    return uuid
