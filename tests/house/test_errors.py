"""Every failure has words, a hint and a status, whatever it is about."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest

from snapvm import attention, errors, failures, refusals
from snapvm.cli.words import plain
from snapvm.errors import ExitStatus, SnapvmError
from tests.house.source import ROOT

HOSTILE = (
    "",
    "plain",
    "a b",
    "%s %d {x}",
    "\x1b[31mred\x07",
    "new\nline",
    "'\"`$(x)",
    "\udcff",
    "日",
)

OURS = {module.__name__ for module in (errors, refusals, failures, attention)}

VALUES: dict[str, tuple[object, ...]] = {
    "bool": (True, False),
    "str": HOSTILE,
    "int": (0, 1 << 64),
    "float": (0.0, 1e9),
    "tuple[str, ...]": ((), HOSTILE),
    "tuple[Mapping[str, str], ...]": ((), ({"subject": "x"},)),
    "Mapping[str, Any]": ({}, {"sound": False}),
    "SnapvmError": tuple(errors.UnknownDomain(text) for text in HOSTILE),
}


def leaves(base: type[SnapvmError] = SnapvmError) -> Iterator[type[SnapvmError]]:
    for child in base.__subclasses__():
        if child.__module__ in OURS and dataclasses.is_dataclass(child):
            yield child
        yield from leaves(child)


LEAVES = sorted(set(leaves()), key=str)


@pytest.mark.parametrize("kind", LEAVES)
def test_words_survive_hostile_data(kind: type[SnapvmError]) -> None:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for number in range(len(HOSTILE)):
        data = {
            field.name: VALUES[str(field.type)][number % len(VALUES[str(field.type)])]
            for field in fields
        }
        error = kind(**data)
        assert error.message()
        assert isinstance(error.hint(), str)
        assert str(error) == error.message()
        assert plain(error.message()).isprintable()
        assert plain(error.hint()).isprintable()
        assert isinstance(error.exit_status, ExitStatus)


@pytest.mark.parametrize("kind", LEAVES)
def test_words_have_one_form(kind: type[SnapvmError]) -> None:
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    error = kind(**{field.name: VALUES[str(field.type)][-1] for field in fields})
    assert not error.message().endswith(".")
    assert not error.hint().endswith(".")
    assert kind.__doc__


def test_a_script_is_told_of_each_kind_that_wants_somebody_at_once() -> None:
    """It was said that the kind tells them apart, and not by which words."""
    text = (ROOT / "docs" / "automation.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text.partition("**Status 8.**")[2], re.MULTILINE)
    wanted = [kind for kind in LEAVES if kind.exit_status is ExitStatus.ATTENTION]
    assert sorted(listed) == sorted(kind.__name__ for kind in wanted)


def test_every_status_has_a_meaning() -> None:
    for status in ExitStatus:
        assert status.meaning.endswith(".")
