"""Which host this is, and which boot of it.

The locks of one host say nothing of another that sees the same state folder, and what ran before
another boot does not run any more.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

PATH = Path("/etc/machine-id")
"""Made when a host is installed, and the same after each boot (machine-id(5))."""
BOOT_PATH = Path("/proc/sys/kernel/random/boot_id")
"""A number made up at each boot (proc(5))."""
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


def boot() -> str:
    """Return what tells this boot from every other; empty where the kernel does not say."""
    try:
        return BOOT_PATH.read_text().strip()
    except OSError:
        return ""


def name() -> str:
    """Return what people call it."""
    return os.uname().nodename


def is_another(then: str) -> bool:
    """Tell whether ``then`` is what another host's ``now`` returned; no when either is unknown."""
    return _differ(then, now())


def is_rebooted(then: str) -> bool:
    """Tell whether it has been booted since ``boot`` said this; no when that is not known."""
    return _differ(then, boot())


def _differ(then: str, current: str) -> bool:
    return bool(then and current and then != current)
