"""The ways in which a command dies in the crash sweep, each at a crash point that it passes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from snapvm.crashpoint import VARIABLE
from tests.lab.vm import Completed, Lab

DEATH_SECONDS = 240
NEVER_CAME = 99
"""The status of ``STOPPED`` for a command that ended before it came to its point."""

STOPPED = f"""
deed=$1; shift
"$@" & p=$!
while s=$(ps -o state= -p $p) && [ "$s" != T ] && [ "$s" != Z ]; do sleep 0.1; done
[ "$s" = T ] || {{ wait $p; echo "it ended with $?" >&2; exit {NEVER_CAME}; }}
eval "$deed"
wait $p
"""
"""Run a command that stops itself (SIGSTOP) at its point; do something then; return its status."""

KILL_GUARD = "pkill -KILL -f 'guard[.]main'"


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
            case Way.SNAPVM:
                return (-9,)
            case Way.BOTH:
                return (128 + 9,)
            case Way.GUARD:
                # Killed before it said that it is ready, it is one that "cannot".
                return (0, 4, 6)
            case Way.INT | Way.TERM:
                return (0, 130)


def die(lab: Lab, argv: Sequence[str], point: str, way: Way) -> Completed:
    """Let a command come to a point and die there."""
    match way:
        case Way.SNAPVM:
            return lab.run(argv, timeout_seconds=DEATH_SECONDS, env={VARIABLE: point})
        case Way.INT | Way.TERM:
            env = {VARIABLE: f"{point}:{way.upper()}"}
            return lab.run(argv, timeout_seconds=DEATH_SECONDS, env=env)
        case Way.BOTH:
            return at_point(lab, argv, point, f"{KILL_GUARD}; kill -KILL $p")
        case Way.GUARD:
            return at_point(lab, argv, point, f"{KILL_GUARD}; kill -CONT $p")


def at_point(lab: Lab, argv: Sequence[str], point: str, deed: str) -> Completed:
    """Have a command stopped at a point while a shell does something: ``$p`` is its process."""
    wrapped = ["bash", "-c", STOPPED, "deaths", deed, *argv]
    return lab.run(wrapped, timeout_seconds=DEATH_SECONDS, env={VARIABLE: f"{point}:STOP"})
