"""Releases of other people's programs, compared."""

from __future__ import annotations

import re


def release(text: str) -> tuple[int, ...]:
    """Return the first two numbers of a version: (11, 2) of ``11.2.0``; none of no version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
