"""How a command line names a snapshot: by its id, by a prefix, as the latest."""

from __future__ import annotations

import json
from dataclasses import replace

from snapvm.errors import ExitStatus
from snapvm.model import DomainUuid
from tests.fakes.records import make_record, put_record
from tests.fakes.scene import DOMAIN, Scene
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
