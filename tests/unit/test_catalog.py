"""The catalog: visible means complete, damage stays local, nobody else's file is read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from snapvm import durable, recordfolder
from snapvm.catalog import Catalog, Draft
from snapvm.errors import UnknownSnapshot
from snapvm.failures import StorageFailed
from snapvm.model import DomainUuid, Record, SnapshotId
from snapvm.recordfolder import Damaged, Work
from snapvm.refusals import RecordUnusable, SnapshotExists
from tests.fakes.power import Disk
from tests.fakes.records import UUID, make_record, put_record

OTHER = DomainUuid("5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e70")


def begun(catalog: Catalog, id_: SnapshotId, intent: dict[str, object]) -> Draft:
    """Begin a snapshot of the domain."""
    draft = catalog.draft(UUID, id_)
    catalog.begin(draft, "demo", intent)
    return draft


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(tmp_path / "state", tmp_path / "run")


def commit(catalog: Catalog, record: Record) -> None:
    draft = catalog.draft(record.domain_uuid, record.id)
    catalog.begin(draft, record.domain, {"what": "test"})
    (draft.folder / "memory.img").write_bytes(b"image")
    catalog.commit(draft, record)


def test_files_are_kept_where_each_has_one_name(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CIFS or exFAT a rollback of UEFI variables never ended, nor did any command after it."""

    def no_links(path: Path, _new: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(os, "link", no_links)
    record = make_record("a")
    aside = catalog.aside(UUID, record.id)
    aside.mkdir(parents=True)
    (aside / "nvram.vars").write_bytes(b"x")
    catalog.put(record, aside)
    kept = catalog.folder(UUID, record.id) / "nvram.vars"
    assert kept.read_bytes() == b"x" and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert catalog.ids(UUID) == ["a"] and not aside.exists()


def test_nothing_is_visible_before_the_commit(catalog: Catalog) -> None:
    record = make_record("a")
    draft = begun(catalog, record.id, {})
    assert catalog.ids(UUID) == []
    assert catalog.has(UUID, "a")
    assert [left.work for left in catalog.leftovers(UUID)] == [Work.TAKE]
    catalog.commit(draft, record)
    assert catalog.get(UUID, record.id) == record
    assert catalog.leftovers(UUID) == ()


def test_all_that_is_in_its_folder_is_on_the_disk_when_a_record_is_visible(
    catalog: Catalog,
) -> None:
    """Whoever wrote it: `commit` relies on nobody to have done so."""
    with Disk.watched() as disk:
        commit(catalog, make_record("a"))
    assert list(disk.losing(catalog.folder(UUID, SnapshotId("a")))) == []


def test_what_is_written_is_private(catalog: Catalog, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        commit(catalog, make_record("a"))
    finally:
        os.umask(before)
    folders = [path for path in (tmp_path / "state").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    record = catalog.path(make_record("a"), "snapshot.json")
    assert stat.S_IMODE(record.stat().st_mode) == 0o600


def test_an_id_is_used_once(catalog: Catalog) -> None:
    commit(catalog, make_record("a"))
    with pytest.raises(SnapshotExists):
        begun(catalog, SnapshotId("a"), {})
    begun(catalog, SnapshotId("b"), {})
    with pytest.raises(SnapshotExists):
        begun(catalog, SnapshotId("b"), {})


def test_a_discarded_draft_leaves_nothing(catalog: Catalog) -> None:
    draft = begun(catalog, SnapshotId("a"), {})
    catalog.discard(draft)
    catalog.discard(draft)
    assert not catalog.has(UUID, "a")
    assert catalog.leftovers(UUID) == ()


def test_a_hidden_record_has_its_id_until_it_is_forgotten(catalog: Catalog) -> None:
    record = make_record("a")
    commit(catalog, record)
    gone = catalog.hide(record)
    assert catalog.ids(UUID) == [] and catalog.has(UUID, "a")
    catalog.forget(gone)
    assert not catalog.has(UUID, "a")


def test_ids_are_in_their_order(catalog: Catalog) -> None:
    for name in ("z", "b", "a"):
        commit(catalog, make_record(name))
    assert catalog.ids(UUID) == ["a", "b", "z"]


def test_a_domain_whose_name_is_not_written_has_that_of_its_newest_record(
    catalog: Catalog, tmp_path: Path
) -> None:
    """As out of a backup without hidden files: `latest` of its former name was another's.

    An id that somebody chose sorts behind those that are times.
    """
    commit(catalog, make_record("upgrade", created="2026-01-01T00:00:00+00:00", domain="web"))
    commit(catalog, make_record("20261122T201755Z", domain="web2"))
    late = {"created": "2026-11-01T00:00:00+00:00", "order": "2026-11-22T20:17:55.251+00:00"}
    commit(catalog, make_record("20261101T000000Z", domain="web3", **late))
    (name,) = tmp_path.rglob(".name")
    name.unlink()
    assert catalog.names() == ("web3",)


def test_a_domain_is_found_by_its_name(catalog: Catalog) -> None:
    commit(catalog, make_record("a"))
    assert catalog.uuids_of("demo") == (UUID,)
    assert catalog.uuids_of("other") == ()
    assert catalog.names() == ("demo",)
    commit(catalog, make_record("b", domain="renamed"))
    assert catalog.uuids_of("renamed") == (UUID,)


def spoil_text(path: Path) -> None:
    path.write_text("{")


def remove(path: Path) -> None:
    path.unlink()


def link_elsewhere(path: Path) -> None:
    real = path.with_name("real")
    path.rename(real)
    path.symlink_to(real)


def make_huge(path: Path) -> None:
    os.truncate(path, 5 << 20)


def copy_of_another(path: Path) -> None:
    path.write_text(path.read_text().replace('"bad"', '"good"'))


def of_another_domain(path: Path) -> None:
    path.write_text(path.read_text().replace(UUID, OTHER))


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_text,
        remove,
        link_elsewhere,
        make_huge,
        copy_of_another,
        of_another_domain,
        be_a_folder,
    ],
)
def test_damage_stays_local(catalog: Catalog, tmp_path: Path, spoil: object) -> None:
    put_record(tmp_path / "state", make_record("good"))
    path = put_record(tmp_path / "state", make_record("bad"))
    spoil(path)  # type: ignore[operator]
    entries = list(catalog.entries())
    assert [entry.id for entry in entries if isinstance(entry, Record)] == ["good"]
    (damaged,) = [entry for entry in entries if isinstance(entry, Damaged)]
    assert (damaged.domain, damaged.id) == ("demo", "bad")
    assert damaged.why
    with pytest.raises(RecordUnusable):
        catalog.get(UUID, SnapshotId("bad"))
    assert catalog.get(UUID, SnapshotId("good"))


def test_what_is_no_record_is_passed_over(catalog: Catalog, tmp_path: Path) -> None:
    put_record(tmp_path / "state", make_record("a"))
    domains = tmp_path / "state" / "domains"
    (domains / "lost+found").mkdir()
    (domains / UUID / "a file").write_text("x")
    (domains / UUID / "file").write_text("x")
    (domains / OTHER).write_text("no folder")
    assert [entry.id for entry in catalog.entries()] == ["a"]


def test_an_empty_catalog_is_no_error(catalog: Catalog) -> None:
    assert list(catalog.entries()) == []
    assert catalog.names() == ()
    assert catalog.ids(UUID) == []
    with pytest.raises(UnknownSnapshot):
        catalog.get(UUID, SnapshotId("a"))


def test_a_state_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    catalog = Catalog(tmp_path / "state", tmp_path / "run")
    with pytest.raises(StorageFailed):
        begun(catalog, SnapshotId("a"), {})


def test_a_uuid_from_outside_cannot_leave_the_folder(catalog: Catalog) -> None:
    with pytest.raises(StorageFailed):
        catalog.ids(DomainUuid("../../etc"))


def test_a_record_that_hides_in_vain_stays(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record("a")
    commit(catalog, record)
    with monkeypatch.context() as patch, pytest.raises(StorageFailed):
        patch.setattr(durable, "sync_folder", fail)
        catalog.hide(record)
    assert catalog.get(UUID, record.id) == record and catalog.leftovers(UUID) == ()


def fail(path: Path, **_options: bool) -> None:
    """Be a disk with a bad block."""
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


def test_what_is_left_of_the_intent_does_not_hinder_a_commit(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        commit(catalog, make_record("a"))
    assert catalog.ids(UUID) == ["a"] and catalog.leftovers(UUID) == ()


def test_a_rollback_journal_is_a_leftover(catalog: Catalog) -> None:
    commit(catalog, make_record("a"))
    names = recordfolder.listed(catalog.folder(UUID, SnapshotId("a")).parent)
    catalog.write_journal(UUID, Work.ROLLBACK, {"phase": "x"})
    (left,) = catalog.leftovers(UUID)
    durable.unfinished(left.path).write_bytes(b"of one that was killed while it wrote")
    assert (left.work, left.intent) == (Work.ROLLBACK, {"phase": "x"})
    catalog.end_journal(UUID, Work.ROLLBACK)
    catalog.end_journal(UUID, Work.ROLLBACK)
    assert catalog.leftovers(UUID) == ()
    assert recordfolder.listed(left.path.parent) == names


def test_what_was_taken_back_is_not_written_down_again(catalog: Catalog) -> None:
    draft = begun(catalog, SnapshotId("a"), {})
    catalog.discard(draft)
    catalog.amend(draft, {"was_running": False})
    assert catalog.leftovers(UUID) == ()


def test_a_record_that_cannot_be_opened_is_damaged_in_plain_words(catalog: Catalog) -> None:
    commit(catalog, make_record("a"))
    path = catalog.folder(UUID, SnapshotId("a")) / "snapshot.json"
    path.unlink()
    path.symlink_to("elsewhere")
    (damaged,) = catalog.entries(UUID)
    assert isinstance(damaged, Damaged)
    assert damaged.why == "Too many levels of symbolic links"


def test_a_damaged_journal_is_still_a_leftover(catalog: Catalog) -> None:
    draft = begun(catalog, SnapshotId("a"), {"x": 1})
    (draft.folder / "intent.json").write_text("[1")
    (left,) = catalog.leftovers(UUID)
    assert left.intent == {}


def test_a_journal_that_was_never_written_ends_where_all_is_read_only(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses before it looks for the file; a rollback said that it was left behind."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    catalog.end_journal(UUID, Work.ROLLBACK)
