"""The text that each verb has beside its code for the man page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Manual:
    """The answers to three questions that users have about a command.

    Each text is one paragraph; words in backquotes are set in bold.
    """

    prerequisites: str
    success: str
    failure: str
    example: str = ""
