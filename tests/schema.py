"""The schema of records that is shipped, for tests of whatever writes one."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from tests.house.source import ROOT

SCHEMA: dict[str, Any] = json.loads((ROOT / "snapvm" / "snapshot.schema.json").read_text())
_NOT_STORED = {"ref", "health"}
"""What commands add to a record that they print."""


def checker() -> jsonschema.Draft202012Validator:
    """Return what tells whether a stored record fits the schema."""
    return jsonschema.Draft202012Validator(SCHEMA)


def require_fit(printed: dict[str, Any]) -> None:
    """Raise ``jsonschema.ValidationError`` when a record that a command printed does not fit."""
    checker().validate({key: printed[key] for key in printed.keys() - _NOT_STORED})
