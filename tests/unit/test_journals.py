"""Journals are read and written as they always were: an older snapvm may have left one, or get one.

What stands here in JSON is what a snapvm has written to a disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapvm import hostid, rollbackplan
from snapvm.domainrun import DomainRun
from snapvm.jsonvalues import Wrong
from snapvm.model import VgUuid
from snapvm.recordfolder import Work
from snapvm.rollbackjournal import RollbackJournal
from snapvm.stopping import StopJournal
from snapvm.takejournal import TakeJournal
from tests.fakes import mortal, verbs
from tests.fakes.scene import make_scene
from tests.unit.deeds import begun, journal, mend, take_half

ROLLBACK = """{
 "kind": "rollback",
 "phase": "prepare",
 "record": "before-upgrade",
 "set": "5e6ae3a5a1c4",
 "boot_id": "9d1b1a5e-7a0e-4a53-8d3c-5f6d5f0a7b11",
 "run": "process 4711 since 5000",
 "paused": false,
 "set_time": true,
 "was_running": true,
 "definition": "<domain type='kvm'><name>demo</name></domain>",
 "disks": [
  {
   "vg": "vg0",
   "vg_uuid": "wqC5Yx-0000-0000-0000-0000-0000-000000",
   "disk": "demo-d0",
   "kind": "thin",
   "snapshot": "wqC5Yx-0000-0000-0000-0000-0000-000011",
   "current": "wqC5Yx-0000-0000-0000-0000-0000-000010",
   "clone": "demo-d0.roll.5e6ae3a5a1c4",
   "undo": "demo-d0.undo-20261130T120000Z",
   "tags": [
    "backup",
    "tier=2"
   ],
   "not_at_boot": true,
   "skipped": false
  },
  {
   "vg": "vg1",
   "vg_uuid": "wqC5Yx-0000-0000-0000-0000-0000-000001",
   "disk": "demo-d1",
   "kind": "thick",
   "snapshot": "wqC5Yx-0000-0000-0000-0000-0000-000021",
   "current": "wqC5Yx-0000-0000-0000-0000-0000-000020",
   "clone": "demo-d1.roll.5e6ae3a5a1c4",
   "undo": "demo-d1.undo-20261130T120000Z",
   "tags": [],
   "not_at_boot": false,
   "skipped": true
  }
 ],
 "undo_record": {
  "schema": 1,
  "id": "undo-20261130T120000Z",
  "set": "5e6ae3a5a1c4",
  "kind": "undo",
  "created": "2026-11-30T12:00:00.000+00:00",
  "named": false,
  "note": "the disks before the rollback to before-upgrade",
  "domain": {
   "name": "demo",
   "uuid": "5c1d2f0e-8a3b-4d6f-9e21-0c7a4b5d6e7f",
   "hypervisor": "libvirt",
   "state": "running",
   "memory_bytes": 536870912,
   "vcpus": 2
  },
  "capture": "none: the disks as a rollback found them",
  "memory": null,
  "disks": [
   {
    "target": "vda",
    "kind": "thin",
    "size_bytes": 67108864,
    "volume": {
     "vg": "vg0",
     "lv": "demo-d0",
     "uuid": "wqC5Yx-0000-0000-0000-0000-0000-000010",
     "vg_uuid": "wqC5Yx-0000-0000-0000-0000-0000-000000"
    },
    "snapshot": {
     "vg": "vg0",
     "lv": "demo-d0.undo-20261130T120000Z",
     "uuid": "wqC5Yx-0000-0000-0000-0000-0000-000010",
     "vg_uuid": "wqC5Yx-0000-0000-0000-0000-0000-000000"
    }
   }
  ],
  "omitted": [],
  "timing": {
   "pause_ms": 0,
   "total_ms": 0,
   "parts": []
  },
  "written_bytes": 0,
  "versions": {}
 }
}"""

TAKE = """{
 "kind": "take",
 "set": "0123456789ab",
 "groups": [
  "vg0",
  "vg1"
 ],
 "disks": [
  {
   "vg": "vg0",
   "lv": "demo-d0",
   "uuid": "wqC5Yx-0000-0000-0000-0000-0000-000010",
   "vg_uuid": "wqC5Yx-0000-0000-0000-0000-0000-000000"
  },
  {
   "vg": "vg1",
   "lv": "demo-d1",
   "uuid": "wqC5Yx-0000-0000-0000-0000-0000-000020"
  }
 ],
 "domain": "demo",
 "was_running": true,
 "boot_id": "9d1b1a5e-7a0e-4a53-8d3c-5f6d5f0a7b11",
 "run": "process 4711 since 5000",
 "quiesce": true
}"""

STOP = """{
 "record": "before-upgrade",
 "set": "0123456789ab",
 "boot_id": "9d1b1a5e-7a0e-4a53-8d3c-5f6d5f0a7b11",
 "run": "17",
 "quiesce": false
}"""

Read = Callable[[dict[str, Any]], RollbackJournal | TakeJournal | StopJournal]
KINDS: dict[str, tuple[str, Read]] = {
    "rollback": (ROLLBACK, RollbackJournal.from_dict),
    "take": (TAKE, TakeJournal.from_dict),
    "stop": (STOP, StopJournal.from_dict),
}
OFF = {"run": None, "was_running": False}
"""What is written of a domain that is off."""
LATER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rollback", {}),
    ("rollback", OFF),
    ("rollback", {"boot_id": "", "paused": True, "set_time": False}),
    ("rollback", {"phase": "exchanged", "written": [0, 8192]}),
    ("rollback", {"phase": "prepare", "written": [0, 8192]}),
    ("rollback", {"phase": "swapped", "written": [None, None]}),
    ("rollback", {"phase": "swapped", "written": [4096, 8200], "spoiled": True}),
    ("rollback", {"phase": "swapped", "spoiled": True}),
    ("rollback", {"phase": "restored", "written": [4096, 9000]}),
    ("rollback", {"phase": "started", "written": [4096, 9000], "left_off": False}),
    ("rollback", {"phase": "started", "written": [1, 2], "spoiled": True, "left_off": True}),
    ("take", {}),
    ("take", OFF),
    ("take", {"was_running": False, "quiesce": False, "disks": []}),
    ("stop", {}),
    ("stop", {"run": None, "quiesce": True}),
)


@pytest.mark.parametrize(("kind", "later"), LATER)
def test_one_is_written_back_as_it_was_read(kind: str, later: dict[str, Any]) -> None:
    """To the letter: in the same order, and numbers as they were."""
    literal, read = KINDS[kind]
    text = json.dumps({**json.loads(literal), **later}, indent=1)
    assert text == literal or later
    assert json.dumps(read(json.loads(text)).as_dict(), indent=1) == text


def keys(value: Any) -> Any:
    """Return the keys of nested JSON values, in their order, of a list those of its first."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return keys(value[0]) if isinstance(value, list) and value else None


def test_what_is_written_today_has_the_same_keys(tmp_path: Path) -> None:
    scene, record = begun(tmp_path)
    plan = rollbackplan.plan(scene.host, record)
    former = rollbackplan.undo_record(plan)
    rollback = RollbackJournal.of_plan(plan, former, paused=False, set_time=True)
    said = rollback.as_dict()
    assert list(said) == list(json.loads(ROLLBACK))
    assert keys(said["disks"]) == keys(json.loads(ROLLBACK)["disks"])
    take_half(scene, "half")
    found = journal(scene, Work.TAKE)
    assert keys(found) == keys(json.loads(TAKE)) and list(found) == list(json.loads(TAKE))
    mend(scene)
    assert mortal.kill_at(scene, verbs.take_and_stop, "before stop 1")
    assert list(journal(scene, Work.STOP)) == list(json.loads(STOP))


ABSENT: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("rollback", ("boot_id", "run"), {"run": DomainRun(boot="", run="")}),
    ("rollback", ("set_time",), {"set_time": True}),
    ("rollback", ("definition",), {"definition": ""}),
    ("rollback", ("kind",), {}),
    ("take", ("boot_id", "run"), {"run": DomainRun(boot="", run="")}),
    ("take", ("disks",), {"disks": ()}),
    ("take", ("kind", "domain"), {"domain": ""}),
    ("take", ("quiesce",), {"quiesce": False}),
    ("stop", ("boot_id", "run"), {"run": DomainRun(boot="", run="")}),
    ("stop", ("quiesce",), {"quiesce": False}),
)


@pytest.mark.parametrize(("kind", "absent", "means"), ABSENT)
def test_what_an_older_one_did_not_write_has_its_meaning(
    kind: str, absent: tuple[str, ...], means: dict[str, Any]
) -> None:
    literal, read = KINDS[kind]
    said = json.loads(literal)
    older = {key: value for key, value in said.items() if key not in absent}
    assert read(older) == replace(read(said), **means)


def test_what_an_older_one_did_not_write_of_a_disk_has_its_meaning() -> None:
    said = json.loads(ROLLBACK)
    thin, thick = RollbackJournal.from_dict(said).disks
    for disk in said["disks"]:
        for key in ("vg_uuid", "kind", "not_at_boot", "skipped"):
            del disk[key]
    means: dict[str, Any] = {"vg_uuid": VgUuid(""), "is_thick": False}
    means |= {"not_at_boot": False, "is_skipped": False}
    assert RollbackJournal.from_dict(said).disks == (
        replace(thin, **means),
        replace(thick, **means),
    )


NEEDED = {
    "rollback": {"phase", "record", "set", "paused", "was_running", "disks", "undo_record"},
    "take": {"set", "groups", "was_running"},
    "stop": {"record", "set"},
}
"""What no snapvm has ever left out."""


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_else_is_missing_or_is_no_such_thing_is_refused(kind: str) -> None:
    literal, read = KINDS[kind]
    said = json.loads(literal)
    said |= {"written": [1, 2], "spoiled": True, "left_off": True} if kind == "rollback" else {}
    for key in said.keys() - {"kind"}:
        if key in NEEDED[kind]:
            with pytest.raises(Wrong, match=key):
                read({other: value for other, value in said.items() if other != key})
        for nonsense in (1.5, [1.5]):
            with pytest.raises(Wrong, match=key):
                read({**said, key: nonsense})


@pytest.mark.parametrize(
    ("then", "now", "is_it", "is_over"),
    [
        ("process 1", "process 1", True, False),
        ("process 1", "process 2", False, True),
        ("process 1", None, False, False),
        ("", "process 2", False, False),
        ("", None, False, False),
    ],
)
def test_a_run_that_is_not_known_is_neither_the_same_nor_another(
    tmp_path: Path, then: str, now: str | None, is_it: bool, is_over: bool
) -> None:
    """A domain that may be in it still must not be left paused."""
    domain = replace(make_scene(tmp_path).machine.domain, run=now)
    run = DomainRun(boot=hostid.boot(), run=then)
    assert (run.is_of(domain), run.is_over(domain)) == (is_it, is_over)
