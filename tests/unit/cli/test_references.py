"""How a command line names a snapshot: by its id, by a prefix, as the latest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from snapvm import durable, recordfile
from snapvm.errors import ExitStatus
from snapvm.model import DomainUuid, SnapshotId
from tests.fakes.records import make_record, put_record
from tests.fakes.scene import DOMAIN, UUID, Scene
from tests.unit.cli.conftest import Call


def test_snapshots_of_one_name_are_found_under_every_uuid(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "old")
    other = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")
    scene.machine.domain = replace(scene.machine.domain, uuid=other)
    call("take", DOMAIN, "--name", "new")
    for wanted, id_ in (("old", "old"), ("new", "new"), ("ol", "old"), ("latest", "new")):
        assert json.loads(call("show", f"demo@{wanted}", "--json").out)["id"] == id_
    pruned = call("prune", DOMAIN, "--keep-last", "1", "--include-named", "--yes", "--json")
    assert json.loads(pruned.out)["deleted"] == ["demo@old"]


def test_latest_is_what_was_taken_not_the_undo(call: Call) -> None:
    call("take", DOMAIN, "--name", "a")
    for _ in range(2):
        assert "back at demo@a" in call("rollback", "demo@latest", "--yes").out


def test_a_prefix_will_do_when_it_is_unique(call: Call, scene: Scene) -> None:
    for name in ("nightly-1", "nightly-2", "weekly"):
        put_record(scene.host.settings.state_dir, make_record(name))
    assert call("show", "demo@w").out.startswith("demo@weekly\n")
    assert call("show", "demo@LATEST").status == 0
    done = call("show", "demo@night")
    assert done.status == ExitStatus.NOT_FOUND
    assert "could be any of nightly-1, nightly-2" in done.err


def test_one_with_capitals_is_another_where_files_know_none(
    call: Call, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CIFS the whole snapshot was called damaged, and its folder to be moved away."""
    call("take", DOMAIN, "--name", "Nightly")
    read = durable.read

    def read_in_any_case(path: Path | str, limit_bytes: int) -> bytes:
        return read(str(path).replace("/nightly/", "/Nightly/"), limit_bytes)

    monkeypatch.setattr(durable, "read", read_in_any_case)
    done = call("rollback", "demo@nightly", "--yes")
    assert done.status == ExitStatus.NOT_FOUND
    assert "there is no snapshot demo@nightly" in done.err and "move" not in done.err
    assert call("rollback", "demo@Nightly", "--yes").status == 0


@pytest.mark.parametrize(
    ("verb", "option"), [("delete", "--yes"), ("rollback", "--yes"), ("rollback", "--dry-run")]
)
def test_where_nobody_is_asked_a_prefix_will_not_do(
    call: Call, scene: Scene, verb: str, option: str
) -> None:
    """``delete demo@pre --yes; take demo --name pre``: the first night another one was deleted."""
    call("take", DOMAIN, "--name", "pre-upgrade")
    scene.count(3)
    done = call(verb, "demo@pre", option, "--json")
    assert done.status == ExitStatus.NOT_FOUND
    assert "there is no snapshot demo@pre\n" in done.err
    whole = "with --yes or --dry-run the whole id is required"
    assert f"demo@pre-upgrade begins with that; {whole}" in done.err
    assert scene.ids() == ["pre-upgrade"] and scene.machine.count == 3
    assert call(verb, "demo@pre").status == ExitStatus.REFUSED, "it asks, and says which"
    assert call(verb, "demo@LATEST", option).status == 0


OTHER = DomainUuid("0f0f0f0f-8a3b-4d6f-9e21-0c7a4b5d6e7f")


def put(scene: Scene, uuid: DomainUuid, known_as: str, *records: tuple[str, str]) -> None:
    """Put records of a domain that has had several names, the oldest first."""
    state_dir = scene.host.settings.state_dir
    for number, (domain, id_) in enumerate(records):
        created = f"2026-11-2{number}T00:00:00.000+00:00"
        # No disks: those of all made records are the same volumes.
        record = make_record(id_, domain=domain, domain_uuid=uuid, created=created, disks=())
        put_record(state_dir, record)
    (state_dir / "domains" / uuid / ".name").write_text(known_as)


def shown(call: Call, reference: str) -> tuple[str, str]:
    record = json.loads(call("show", reference, "--json").out)
    return record["domain"]["uuid"], record["ref"]


def refs(call: Call, *domain: str) -> Sequence[str]:
    return [record["ref"] for record in json.loads(call("list", *domain, "--json").out)]


@pytest.mark.parametrize("reference", ["demo@base", "demo@ba", "demo@latest", "old@base", "old@b"])
def test_a_renamed_domain_is_known_by_both_names(call: Call, scene: Scene, reference: str) -> None:
    put(scene, UUID, "old", ("demo", "base"), ("old", "later"))
    assert shown(call, reference) == (UUID, "demo@base")
    assert shown(call, "old@latest") == (UUID, "old@later")
    assert refs(call, "old") == ["demo@base", "old@later"] and refs(call, "demo") == ["demo@base"]


@pytest.mark.parametrize("verb", [("show",), ("delete", "--yes"), ("rollback", "--yes")])
@pytest.mark.parametrize("id_", ["base", "ba"])
def test_what_fits_two_domains_is_none_of_both(
    call: Call, scene: Scene, verb: Sequence[str], id_: str
) -> None:
    put(scene, UUID, "old", ("demo", "base"), ("old", "later"))
    put(scene, OTHER, "demo", ("demo", "base"), ("demo", "new"))
    done = call(verb[0], f"demo@{id_}", *verb[1:])
    assert done.status == ExitStatus.NOT_FOUND
    assert f"old ({UUID})" in done.err and f"demo ({OTHER})" in done.err
    assert f"{UUID}@base" in done.err and f"{OTHER}@base" in done.err
    assert sorted(refs(call)) == ["demo@base", "demo@base", "demo@new", "old@later"]


def test_a_uuid_tells_which_of_two_domains_is_meant(call: Call, scene: Scene) -> None:
    put(scene, UUID, "old", ("demo", "base"), ("old", "later"))
    put(scene, OTHER, "demo", ("demo", "base"), ("demo", "new"))
    for uuid in (UUID, OTHER):
        assert shown(call, f"{uuid}@base") == (uuid, "demo@base")
    assert shown(call, f"{UUID}@l") == shown(call, f"{UUID}@latest") == (UUID, "old@later")
    assert shown(call, "old@base") == (UUID, "demo@base")
    assert shown(call, "demo@latest") == (OTHER, "demo@new"), "of who has the name now"
    assert refs(call, OTHER) == ["demo@base", "demo@new"]
    assert refs(call, "demo") == ["demo@base", "demo@base", "demo@new"]


def test_two_domains_with_one_reference_are_deleted_both(call: Call, scene: Scene) -> None:
    uuids = []
    for name in ("first", "second"):
        call("take", DOMAIN, "--name", "base")
        uuids.append(scene.machine.domain.uuid)
        (scene.host.settings.state_dir / "domains" / uuids[-1] / ".name").write_text(name)
        scene.machine.domain = replace(scene.machine.domain, uuid=OTHER)
        for volume in scene.lvm.volumes:
            volume.name = volume.name.replace(".base", f".{name}")
    assert len(refs(call)) == 2
    assert call("delete", *(f"{uuid}@base" for uuid in uuids), "--yes").status == 0
    assert refs(call) == []


def test_one_that_nobody_can_read_is_told_of_where_it_was(call: Call, scene: Scene) -> None:
    put(scene, UUID, "old", ("demo", "base"))
    put(scene, OTHER, "demo", ("demo", "base"))
    folder = scene.host.settings.state_dir / "domains"
    (folder / UUID / "base" / "snapshot.json").write_text("{")
    assert shown(call, "demo@base") == (OTHER, "demo@base")
    assert call("show", "old@base").status == ExitStatus.REFUSED
    assert "old@base is damaged" in call("list").err and "damaged" not in call("list", "demo").err


def test_a_lost_name_is_that_of_a_record(call: Call, scene: Scene) -> None:
    put(scene, UUID, "", ("demo", "a"), ("demo", "b"))
    folder = scene.host.settings.state_dir / "domains" / UUID
    (folder / ".name").unlink()
    (folder / "b" / "snapshot.json").write_text("{")
    assert shown(call, "demo@a") == (UUID, "demo@a")
    assert scene.host.catalog.names() == ("demo",)
    assert "demo@b is damaged" in call("list", "demo").err
    (folder / "a" / "snapshot.json").unlink()
    assert scene.host.catalog.names() == (UUID,), "nothing says it any more"


def damage(scene: Scene, id_: str) -> None:
    (scene.host.catalog.folder(UUID, SnapshotId(id_)) / "snapshot.json").write_text("{")


@pytest.mark.parametrize("verb", [("show",), ("delete", "--yes"), ("rollback", "--yes")])
@pytest.mark.parametrize("name", [(), ("--name", "newest"), ("--name", "undo-this")])
def test_the_latest_that_cannot_be_read_is_not_the_one_before_it(
    call: Call, scene: Scene, verb: Sequence[str], name: Sequence[str]
) -> None:
    """A script that takes, tries and deletes `latest` again must not delete another."""
    call("take", DOMAIN, "--name", "kept")
    newest = json.loads(call("take", DOMAIN, *name, "--json").out)["id"]
    damage(scene, newest)
    done = call(verb[0], f"{DOMAIN}@latest", *verb[1:])
    assert done.status == ExitStatus.REFUSED and f"/{newest}/snapshot.json" in done.err
    assert scene.host.catalog.ids(UUID) == sorted(["kept", newest])
    assert call("show", f"{DOMAIN}@kept").status == 0


def test_an_old_one_that_cannot_be_read_does_not_hide_the_latest(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "new")
    call("rollback", f"{DOMAIN}@new", "--yes")
    put(scene, UUID, DOMAIN, (DOMAIN, "20200101T000000Z"), (DOMAIN, "undo-20200101T000000Z"))
    damage(scene, "20200101T000000Z")
    damage(scene, "undo-20200101T000000Z")
    assert shown(call, f"{DOMAIN}@latest") == (UUID, "demo@new")
    assert call("undo", DOMAIN, "--yes").status == 0


def test_an_undo_that_cannot_be_read_is_not_the_one_before_it(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    undos = [
        json.loads(call("rollback", f"{DOMAIN}@a", "--yes", "--json").out)["undo"] for _ in "12"
    ]
    damage(scene, undos[1].rpartition("@")[2])
    before = scene.disk_data()
    assert call("undo", DOMAIN, "--yes").status == ExitStatus.REFUSED
    assert scene.disk_data() == before
    assert shown(call, f"{DOMAIN}@latest") == (UUID, "demo@a"), "an undo is no latest"


def make_of_tomorrow(scene: Scene, id_: str) -> None:
    """Have the clock set back after a record was made."""
    path = scene.host.catalog.folder(UUID, SnapshotId(id_)) / "snapshot.json"
    record = scene.host.catalog.get(UUID, SnapshotId(id_))
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    path.write_text(recordfile.dump(replace(record, created=tomorrow.isoformat())))


def test_what_is_taken_after_the_clock_was_set_back_is_the_latest(call: Call, scene: Scene) -> None:
    """For ever the one of the wrong clock was, or none at all: nobody knew which was newer."""
    call("take", DOMAIN, "--name", "a")
    make_of_tomorrow(scene, "a")
    assert shown(call, f"{DOMAIN}@latest") == (UUID, "demo@a")
    for name in ("b", "c"):
        call("take", DOMAIN, "--name", name)
        assert shown(call, f"{DOMAIN}@latest") == (UUID, f"demo@{name}")
    assert refs(call) == ["demo@a", "demo@b", "demo@c"]
    table = call("list").out.splitlines()[1:]
    assert [line.split()[0] for line in table] == ["demo@a", "demo@b", "demo@c"]
    told = json.loads(call("prune", DOMAIN, *RULES, "--dry-run", "--json").out)
    assert told["kept"] == {"demo@c": ["last"], "demo@a": ["in the future"]}
    assert call("delete", f"{DOMAIN}@latest", "--yes").out == "deleted demo@c\n"


def test_the_order_is_that_of_all_that_have_the_name(call: Call, scene: Scene) -> None:
    """A domain that is defined anew has another uuid, and `latest` is of both."""
    call("take", DOMAIN, "--name", "old")
    make_of_tomorrow(scene, "old")
    scene.machine.domain = replace(scene.machine.domain, uuid=OTHER)
    call("take", DOMAIN, "--name", "new")
    assert shown(call, f"{DOMAIN}@latest") == (OTHER, "demo@new")


def test_an_order_is_kept_by_what_is_made_anew(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a", "--disk-only")
    make_of_tomorrow(scene, "a")
    for name in ("c", "b"):
        call("take", DOMAIN, "--name", name, "--disk-only")
    for name in ("c", "b"):
        damage(scene, name)
    assert call("catalog", "rebuild").status == 0
    assert refs(call) == ["demo@a", "demo@c", "demo@b"]


def test_undo_goes_back_to_what_the_last_rollback_replaced(call: Call, scene: Scene) -> None:
    """It went back to the disks that were current before an earlier rollback, or refused."""
    call("take", DOMAIN, "--name", "a")
    call("rollback", f"{DOMAIN}@a", "--yes")
    (early,) = (id_ for id_ in scene.ids() if id_ != "a")
    make_of_tomorrow(scene, early)
    scene.count(4)
    call("rollback", f"{DOMAIN}@a", "--yes")
    assert scene.disk_data() == ["0", "0"]
    assert call("undo", DOMAIN, "--yes").status == 0
    assert scene.disk_data() == ["4", "4"]


def test_one_that_cannot_be_read_may_be_newer_than_one_of_a_wrong_clock(
    call: Call, scene: Scene
) -> None:
    call("take", DOMAIN, "--name", "a")
    make_of_tomorrow(scene, "a")
    damage(scene, json.loads(call("take", DOMAIN, "--json").out)["id"])
    assert call("delete", f"{DOMAIN}@latest", "--yes").status == ExitStatus.REFUSED
    assert shown(call, f"{DOMAIN}@a") == (UUID, "demo@a")


def test_a_time_that_has_no_later_one_orders_nothing(call: Call, scene: Scene) -> None:
    call("take", DOMAIN, "--name", "a")
    path = scene.host.catalog.folder(UUID, SnapshotId("a")) / "snapshot.json"
    record = scene.host.catalog.get(UUID, SnapshotId("a"))
    for created in ("9999-12-31T23:59:59.999+00:00", "0001-01-01T00:00:00+14:00", "once"):
        path.write_text(recordfile.dump(replace(record, created=created)))
        assert call("take", DOMAIN).status == 0


RULES = ("--keep-last", "1", "--include-named")


def test_prune_judges_what_list_shows(call: Call, scene: Scene) -> None:
    put(scene, UUID, "new", ("old", "a"), ("old", "b"), ("new", "c"))
    told = json.loads(call("prune", "old", *RULES, "--dry-run", "--json").out)
    assert [*told["deleted"], *told["kept"]] == refs(call, "old") == ["old@a", "old@b"]
    assert call("prune", "nope", *RULES).status == ExitStatus.NOT_FOUND
    put(scene, OTHER, "old", ("old", "d"))
    told = json.loads(call("prune", "old", *RULES, "--dry-run", "--json").out)
    assert told["deleted"] == ["old@a"], "each domain by itself"


def test_what_two_domains_call_alike_is_told_apart(call: Call, scene: Scene) -> None:
    put(scene, UUID, "demo", ("demo", "base"))
    put(scene, OTHER, "demo", ("demo", "x"), ("demo", "base"))
    told = json.loads(call("prune", "demo", *RULES, "--dry-run", "--json").out)
    assert told["kept"] == {f"{OTHER}@base": ["last"]}
    assert told["deleted"] == ["demo@x", f"{UUID}@base"]
    assert f"{UUID}@base of " in call("prune", "demo", *RULES, "--dry-run").out
    assert call("prune", "demo", *RULES, "--yes").status == 0
    assert shown(call, "demo@latest") == (OTHER, "demo@base") and refs(call) == ["demo@base"]
