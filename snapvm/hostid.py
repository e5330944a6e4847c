"""Which host this is: the locks of one say nothing of another that sees the same state folder."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

PATH = Path("/etc/machine-id")
"""Made when a host is installed, and the same after each boot (machine-id(5))."""
_ID = re.compile(rb"[0-9a-f]{32}\Z")
_PURPOSE = b"snapvm: who wrote a journal"


def now() -> str:
    """Return what tells this host from every other; empty where nothing does.

    Not the id itself, which machine-id(5) wants kept to the host.
    """
    try:
        found = PATH.read_bytes().strip()
    except OSError:
        return ""
    if not _ID.match(found):
        return ""
    return hashlib.sha256(_PURPOSE + found).hexdigest()[:32]


def name() -> str:
    """Return what people call it."""
    return os.uname().nodename


def is_another(then: str) -> bool:
    """Tell whether ``then`` is what another host's ``now`` returned; no when either is unknown."""
    current = now()
    return bool(then and current and then != current)
