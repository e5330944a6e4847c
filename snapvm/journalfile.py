"""The form of a journal on the disk: JSON with a version, which older ones did without.

Whether what it says makes sense is for those to judge who act on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapvm import durable, recordfile
from snapvm.attention import JournalUnusable

VERSION = 1
_KEY = "journal"


def dump(intent: dict[str, Any]) -> bytes:
    """Return the bytes of a journal."""
    return json.dumps({_KEY: VERSION, **intent}, indent=1).encode()


def load(path: Path) -> dict[str, Any]:
    """Return what a journal says; nothing when it was not written, or is removed already.

    Raises ``JournalUnusable`` for one that is damaged, or that a newer snapvm wrote: what it
    stands for may have happened.
    """
    try:
        said = json.loads(durable.read(path, recordfile.SIZE_LIMIT_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise JournalUnusable(path=str(path), why=f"it cannot be read ({error})") from error
    if not isinstance(said, dict):
        raise JournalUnusable(path=str(path), why="it cannot be read (no JSON object)")
    version = said.pop(_KEY, VERSION)
    if type(version) is not int or not 1 <= version <= VERSION:
        newer = f"it was written by a newer snapvm (journal {version}, this one knows {VERSION})"
        raise JournalUnusable(path=str(path), why=newer)
    return said
