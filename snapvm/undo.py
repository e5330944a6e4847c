"""Putting things back: steps registered before the deed, run in reverse when it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import NamedTuple, Self

from snapvm.attention import LeftBehind, NameUnclear
from snapvm.errors import ExitStatus, SnapvmError
from snapvm.interrupt import nothing_is_left, undisturbed

log = logging.getLogger(__name__)


class Removes(Enum):
    """What a step removes, where that must not always go; see ``Undo``."""

    JOURNAL = auto()
    PART = auto()
    """A part of what would have become visible."""
    ANYTHING_ELSE = auto()


class _Step(NamedTuple):
    what: str
    step: Callable[[], None]
    removes: Removes


class Undo:
    """A stack of undo steps for work that has no transaction of its own.

    A step is added *before* its deed and so must be harmless when the deed never happened.  When
    the block fails every step runs, the newest first, out of reach of Ctrl-C; a step that fails
    does not stop the others.  What could not be put back is named by ``LeftBehind``, raised
    ``from`` the error that began it.  But a failure that says what the domain needs (exit status 8)
    comes first, whether it was that error or met by a step: the user has to read it.  In all these
    cases a journal stays, for it says what there is to repair.  With ``NameUnclear`` it stays too,
    and so does every part of what got the name, for nobody knows whether the next boot of the host
    finds it complete.
    """

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def add(
        self, what: str, step: Callable[[], None], *, removes: Removes = Removes.ANYTHING_ELSE
    ) -> None:
        """Remember ``step``, which takes back the deed named ``what``."""
        self._steps.append(_Step(what, step, removes))

    def disarm(self) -> None:
        """Forget all steps: the work is complete."""
        self._steps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        with undisturbed():
            leftovers, needy = self._put_back(error)
            nothing_is_left()
        if _needs_attention(error):
            return
        if needy is not None:
            raise needy from error
        if leftovers:
            raise LeftBehind(leftovers=leftovers, why=str(error) or type(error).__name__) from error

    def _put_back(self, error: BaseException) -> tuple[tuple[str, ...], Exception | None]:
        """Run the steps; return what could not be put back, and the failure the domain needs."""
        is_unclear = isinstance(error, NameUnclear)
        if is_unclear:
            self._steps = [step for step in self._steps if step.removes is not Removes.PART]
        keeps_journal = is_unclear or _needs_attention(error)
        leftovers: list[str] = []
        needy: Exception | None = None
        while self._steps:
            what, step, removes = self._steps.pop()
            if removes is Removes.JOURNAL and (leftovers or keeps_journal):
                continue
            try:
                step()
            except Exception as failure:
                log.warning("could not put back %s: %s", what, failure)
                leftovers.append(f"{what} ({failure})")
                if _needs_attention(failure):
                    needy = failure
        return tuple(leftovers), needy


def _needs_attention(error: BaseException) -> bool:
    return isinstance(error, SnapvmError) and error.exit_status is ExitStatus.ATTENTION
