"""A second process that makes the domain run again when snapvm dies inside the window.

SIGKILL leaves no time for a ``finally``.  The guard waits on a pipe whose other end only snapvm
holds: ``done`` dismisses it; the end of the pipe without it means that snapvm is dead, and the
guard does at once what ``snapvm repair`` would do, beginning with the resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from snapvm.failures import CommandFailed, CommandTimedOut
from snapvm.process import Conversation, Runner
from snapvm.refusals import HostLacks

READY = "ready"
BYE = "bye"
DISMISS = "done"
READY_SECONDS = 120.0
BYE_SECONDS = 30.0


class Guard:
    """The guard of one domain, starting while other things are prepared."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    def wait_until_ready(self) -> None:
        """Return when it stands watch; raise ``HostLacks`` when it cannot, before any effect."""
        said = self._talk.ask("watch", _ends, limit_seconds=READY_SECONDS)
        if said[-1] != READY:
            raise HostLacks(
                what=f"a guard process that works ({' '.join(said)})",
                remedy="`snapvm --verbose repair` tells more",
            )

    def dismiss(self) -> None:
        """Send it home: all is well, or has been put back."""
        with suppress(CommandFailed, CommandTimedOut):
            self._talk.ask(DISMISS, _ends, limit_seconds=BYE_SECONDS)


def _ends(line: str) -> bool:
    return line in (READY, BYE) or line.startswith("cannot")


@contextmanager
def watching(runner: Runner, argv: Sequence[str]) -> Iterator[Guard]:
    """Have a guard for the block; it is dismissed however the block ends while snapvm lives."""
    with runner.converse(argv) as talk:
        guard = Guard(talk)
        try:
            yield guard
        finally:
            guard.dismiss()
