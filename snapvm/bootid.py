"""Which boot of this host it is: what ran before another one does not run any more."""

from __future__ import annotations

from pathlib import Path

PATH = Path("/proc/sys/kernel/random/boot_id")
"""A number made up at each boot (proc(5))."""


def now() -> str:
    """Return what tells this boot from every other; empty where the kernel does not say."""
    try:
        return PATH.read_text().strip()
    except OSError:
        return ""


def is_over(then: str) -> bool:
    """Tell whether the host has been booted since ``now`` said this; no when it is not known."""
    current = now()
    return bool(then and current and then != current)
