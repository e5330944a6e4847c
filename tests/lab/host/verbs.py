"""What the crash sweep lets die, and in which ways; free of imports, for both sides of the lab."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

NAME: Final = "crash"
"""The domain that is operated on."""
KEPT: Final = "kept"
"""The snapshot that is there before."""
DYING: Final = "dying"
"""The snapshot that a take is making when it dies."""
NEWER: Final = "newer"
"""A later one, for ``prune``."""
SPOILED: Final = 3
"""The status of the part inside when a case did not pass: its domain is not what it was."""


class Way(StrEnum):
    """Who dies, and of what."""

    SNAPVM = "snapvm"
    """SIGKILL of snapvm; its guard lives, and acts."""
    BOTH = "both"
    """SIGKILL of the guard and of snapvm: only the next command can mend it."""
    GUARD = "guard"
    """SIGKILL of the guard; snapvm goes on."""
    INT = "int"
    TERM = "term"

    @property
    def is_mended_later(self) -> bool:
        """Whether work may be left for the next command to finish."""
        return self in (Way.SNAPVM, Way.BOTH)

    @property
    def statuses(self) -> tuple[int, ...]:
        """Return how the command may end."""
        match self:
            case Way.SNAPVM | Way.BOTH:
                return (-9,)
            case Way.GUARD:
                # Killed before it said that it is ready, it is one that "cannot".
                return (0, 4, 6)
            case Way.INT | Way.TERM:
                return (0, 130)


class Verb(StrEnum):
    """A command of the sweep."""

    TAKE = "take"
    ROLLBACK = "rollback"
    DELETE = "delete"
    UNDO = "undo"
    TAKE_STOP = "take --stop"
    PRUNE = "prune"
    REPAIR_TAKE = "repair of take"
    """``repair`` dies while it mends a take that died in the middle."""
    REPAIR_ROLLBACK = "repair of rollback"
    REPAIR_DELETE = "repair of delete"

    @property
    def dead(self) -> Verb | None:
        """Return the command that has to be dead before this one begins."""
        return Verb(self.removeprefix("repair of ")) if self.startswith("repair of ") else None

    @property
    def goes_back(self) -> bool:
        """Whether the present of the disks becomes a snapshot."""
        return (self.dead or self) in (Verb.ROLLBACK, Verb.UNDO)

    @property
    def needs_memory(self) -> bool:
        """Whether the snapshot that is there before has to hold memory; others are made faster."""
        return (self.dead or self) not in (Verb.DELETE, Verb.PRUNE)

    @property
    def argv(self) -> list[str]:
        """Return the arguments of the command that is going to die."""
        match self:
            case Verb.TAKE:
                return ["take", NAME, "--name", DYING]
            case Verb.TAKE_STOP:
                return ["take", NAME, "--name", DYING, "--stop"]
            case Verb.ROLLBACK | Verb.DELETE:
                return [self.value, f"{NAME}@{KEPT}", "--yes"]
            case Verb.UNDO:
                return ["undo", NAME, "--yes"]
            case Verb.PRUNE:
                rules = ["--keep-last", "1", "--include-named", "--include-undo"]
                return ["prune", NAME, *rules, "--yes"]
            case _:
                return ["repair"]
