"""The schema, the records written in the past, and the code that reads and writes them, agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from snapvm import recordfile
from snapvm.model import DomainState, HypervisorKind, RecordKind, SideKind, VolumeKind
from snapvm.refusals import RecordUnusable
from tests.fakes.records import disks_only, make_record
from tests.house.source import ROOT
from tests.schema import SCHEMA, checker

FIXTURES = sorted((ROOT / "tests" / "fixtures" / "catalog" / "v1").glob("*.json"))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == recordfile.SCHEMA_VERSION


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_records_of_the_past_can_be_read(path: Path) -> None:
    text = path.read_text()
    checker().validate(json.loads(text))
    assert recordfile.dump(recordfile.load(text.encode(), str(path))) == text


def test_there_are_records_of_the_past() -> None:
    assert len(FIXTURES) >= 3


RECORDS = [make_record(), disks_only("off"), make_record(order="2027-01-01T00:00:00.001+00:00")]


@pytest.mark.parametrize("record", RECORDS, ids=["full", "disks", "ordered"])
def test_what_is_written_fits_the_schema(record: Any) -> None:
    checker().validate(recordfile.as_dict(record))


def test_the_schema_knows_the_enums() -> None:
    properties = SCHEMA["properties"]
    domain = properties["domain"]["properties"]
    disk = properties["disks"]["items"]["properties"]
    assert properties["kind"]["enum"] == [kind.value for kind in RecordKind]
    assert domain["state"]["enum"] == [state.value for state in DomainState]
    assert domain["hypervisor"]["enum"] == [kind.value for kind in HypervisorKind]
    side = properties["side_files"]["items"]["properties"]
    assert side["kind"]["enum"] == [kind.value for kind in SideKind]
    assert disk["kind"]["enum"] == [kind.value for kind in VolumeKind]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, child in children:
        found.append((*path, key))
        if isinstance(child, (dict, list)):
            found += places(child, (*path, key))
    return found


def test_code_and_schema_refuse_the_same() -> None:
    """Take any one value away, or make it a list: both refuse it."""
    whole = recordfile.as_dict(make_record())
    for path in places(whole):
        if path[:1] == ("versions",) and len(path) > 1:
            continue
        for spoiled in (drop(whole, path), replace(whole, path, [[]])):
            is_list = isinstance(path[-1], int)
            if spoiled is None or is_list:
                continue
            accepted = checker().is_valid(spoiled)
            assert not accepted, path
            # A missing memory is read as none: what it cannot be is something else.
            if path != ("memory",) or "memory" in spoiled:
                with pytest.raises(RecordUnusable):
                    recordfile.from_dict(spoiled, "x")


def drop(value: Any, path: tuple[Any, ...]) -> Any:
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    del inside[path[-1]]
    return copy


def replace(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = new
    return copy
