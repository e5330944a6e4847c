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

from snapvm.domainrun import DomainRun
from snapvm.jsonvalues import Wrong
from snapvm.recordfolder import Work
from snapvm.stopping import StopJournal
from snapvm.takejournal import TakeJournal
from tests.fakes import mortal, verbs
from tests.unit.deeds import begun, journal, mend, take_half

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

Read = Callable[[dict[str, Any]], TakeJournal | StopJournal]
KINDS: dict[str, tuple[str, Read]] = {
    "take": (TAKE, TakeJournal.from_dict),
    "stop": (STOP, StopJournal.from_dict),
}
OFF = {"run": None, "was_running": False}
"""What is written of a domain that is off."""
LATER: tuple[tuple[str, dict[str, Any]], ...] = (
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
    scene, _ = begun(tmp_path)
    take_half(scene, "half")
    found = journal(scene, Work.TAKE)
    assert keys(found) == keys(json.loads(TAKE)) and list(found) == list(json.loads(TAKE))
    mend(scene)
    assert mortal.kill_at(scene, verbs.take_and_stop, "before stop 1")
    assert list(journal(scene, Work.STOP)) == list(json.loads(STOP))


ABSENT: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
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


NEEDED = {
    "take": {"set", "groups", "was_running"},
    "stop": {"record", "set"},
}
"""What no snapvm has ever left out."""


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_else_is_missing_or_is_no_such_thing_is_refused(kind: str) -> None:
    literal, read = KINDS[kind]
    said = json.loads(literal)
    for key in said.keys() - {"kind"}:
        if key in NEEDED[kind]:
            with pytest.raises(Wrong, match=key):
                read({other: value for other, value in said.items() if other != key})
        for nonsense in (1.5, [1.5]):
            with pytest.raises(Wrong, match=key):
                read({**said, key: nonsense})
