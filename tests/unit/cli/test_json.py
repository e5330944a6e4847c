"""What a program reads is what the man page says."""

from __future__ import annotations

import json
import re

import pytest

from tests import schema
from tests.fakes.scene import DOMAIN
from tests.house.source import ROOT
from tests.unit.cli.conftest import Call

PAGE = (ROOT / "man" / "snapvm.1").read_text()


def keys_of(verb: str) -> set[str]:
    """Return the keys that the page has for a verb; a record's own are in its schema."""
    section = PAGE[PAGE.index(".SH JSON") : PAGE.index(".SH ENVIRONMENT")]
    _, _, text = section.partition(f"\\fB{verb}\\fR\n")
    return set(re.findall(r"\\fB([a-z_]+)\\fR", text.partition(".TP")[0]))


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("rollback, undo", ["rollback", "demo@a", "--yes"]),
        ("delete", ["delete", "demo@a", "--yes"]),
        ("prune", ["prune", DOMAIN, "--keep-last", "1"]),
        ("check", ["check"]),
        ("check", ["check", "--fix"]),
        ("doctor", ["doctor", DOMAIN]),
        ("repair", ["repair"]),
        ("catalog rebuild", ["catalog", "rebuild"]),
    ],
)
def test_the_page_has_every_key(call: Call, heading: str, words: list[str]) -> None:
    assert call("take", DOMAIN, "--name", "a").status == 0
    told = json.loads(call(*words, "--json").out)
    assert set(told) <= keys_of(heading)


def test_a_record_has_what_its_schema_has_and_what_the_page_adds(call: Call) -> None:
    known = set(schema.SCHEMA["properties"])
    taken = json.loads(call("take", DOMAIN, "--name", "a", "--json").out)
    shown = json.loads(call("show", "demo@a", "--json").out)
    (row,) = json.loads(call("list", "--json").out)
    assert shown == row
    schema.require_fit(taken)
    schema.require_fit(shown)
    assert set(taken) - known == {"ref"} <= keys_of("take")
    assert set(shown) - known == {"ref", "health"}
    assert "health" in keys_of("show") & keys_of("list")
