"""The form in which a verb says, beside its code, what the man page tells about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Manual:
    """The three questions a user has about a command that changes things.

    Each text is one paragraph; words in backquotes are set in bold.
    """

    prerequisites: str
    success: str
    failure: str
    example: str = ""
