"""The form of a journal on the disk: JSON with a version and the host that wrote it.

Whether what a journal says makes sense is judged by those who act on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapvm import durable, hostid, recordfile
from snapvm.attention import JournalUnusable

VERSION = 1
_KEY = "journal"
_HOST = "host"
_UNREAD = "leave it where it is; fix what prevents it from being read, then: snapvm repair"


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What a journal says."""

    intent: dict[str, Any]
    elsewhere: str = ""
    """The name of the other host that wrote it; empty when this one did, or nobody knows."""


def dump(intent: dict[str, Any]) -> bytes:
    """Return the bytes of a journal of this host."""
    host = {"id": hostid.now(), "name": hostid.name()}
    return json.dumps({_KEY: VERSION, _HOST: host, **intent}, indent=1).encode()


def load(path: Path) -> Journal:
    """Return what a journal says; one that does not exist says nothing.

    Raises ``JournalUnusable`` for one that is damaged, or that a newer snapvm wrote: the work that
    it announces may have been begun.
    """
    try:
        said = json.loads(durable.read(path, recordfile.SIZE_LIMIT_BYTES))
    except FileNotFoundError:
        return Journal(intent={})
    except OSError as error:
        failure = _unreadable(path, error.strerror or str(error))
        if not durable.is_of_file(error):
            failure.remedy = _UNREAD
        raise failure from error
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(said, dict):
        raise _unreadable(path, "no JSON object")
    version = said.pop(_KEY, VERSION)
    if type(version) is not int or version < 1:
        raise _unreadable(path, "no version")
    if version > VERSION:
        newer = f"it was written by a newer snapvm (journal {version}, this one knows {VERSION})"
        raise JournalUnusable(path=str(path), why=newer)
    return Journal(intent=said, elsewhere=_elsewhere(said.pop(_HOST, {})))


def _unreadable(path: Path, why: str) -> JournalUnusable:
    return JournalUnusable(path=str(path), why=f"it cannot be read ({why})")


def _elsewhere(host: Any) -> str:
    """Return the name of the host that a journal names, unless it is this one."""
    if not isinstance(host, dict) or not hostid.is_another(str(host.get("id", ""))):
        return ""
    return str(host.get("name", "")) or "without a name"
